"""What is asked of clusters that a profile's `client` reaches, and of several QOS, by commands that play Slurm's."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from launch.cli import main
from launch.commands.retry import without_bad_nodes
from launch.runs.given import giving
from launch.runs.job_record import Job, job_text
from launch.runs.logs import newest_batch_files
from resnet.rundir.status import write_status
from slurm import sbatch as sending
from slurm.allocation import Allocation, Node
from slurm.claim import follow
from slurm.profile import Profile
from tests.fabricated import make_run

HEADER = '[ -z "$SLURM_CLUSTERS" ] || echo "CLUSTER: $SLURM_CLUSTERS"\n'
"""Printed by older Slurms, also with --noheader."""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Makes commands of Slurm by their shell scripts, which note what they are asked for in `asked`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()

    def make(**scripts: str) -> None:
        for name, script in scripts.items():
            file = tmp_path / "bin" / name
            file.write_text(f'#!/bin/sh\necho "{name} $SLURM_CLUSTERS $*" >> {tmp_path}/asked\n{script}\n')
            file.chmod(0o755)

    return make


def say(capsys, *words: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*words])
    assert (ended.value.code or 0) == code
    return capsys.readouterr().out


def queued_in_two_places(run: Path) -> Path:
    run.mkdir(parents=True)
    write_status(run, name=run.name, state="queued")
    names = ["request-1", "request-2"]
    for number, name in enumerate(names, 1):
        client = {"SLURM_CLUSTERS": "two"} if number == 2 else {"SLURM_CLUSTERS": "one"}
        job = Job.to_send(run.name, client["SLURM_CLUSTERS"], Profile(partition="low"), run, run)
        job = replace(job, request=name, client=client)
        (run / "slurm" / name).mkdir(parents=True)
        (run / "slurm" / name / "job.json").write_text(job_text(job, "5"))
        (run / "slurm" / name / "5_submission.sh").write_text("#!/bin/sh\n")
        if number == 1:
            (run / "slurm" / "job.json").write_text(job_text(replace(job, requests=names), "5"))
    return run


def test_why_asks_the_cluster_on_which_the_run_waits(slurm, tmp_path, capsys):
    """And what it says of a partition is true of that of several requests that it speaks of."""
    row = "5|PENDING|N/A|10:00||Priority|run"
    slurm(
        squeue=f'{HEADER}[ "$SLURM_CLUSTERS" = two ] || exit 0\n'
        f'case "$*" in *%T*) echo "{row}";; *) echo "4|20|{int(time.time()) + 900}"; echo "5|10|N/A";; esac',
        sacct="exit 0",
        scontrol=f'{HEADER}echo "JobId=5 JobName=run Priority=10 JobState=PENDING Reason=Priority Partition=low '
        'NumNodes=2 TimeLimit=01:00:00"',
        sinfo=f'{HEADER}echo "low|up|1:00:00|2/0/0/2"; echo "high|up|infinite|0/4/0/4"',
        sbatch='echo "sbatch: Job 9 to start at 2020-01-01T00:00:00 using 4 processors on nodes n1 in high" >&2',
    )
    told = json.loads(say(capsys, "why", str(queued_in_two_places(tmp_path / "run")), "--json"))
    asked = (tmp_path / "asked").read_text()
    script = tmp_path / "run" / "slurm" / "request-2" / "5_submission.sh"
    assert f"sbatch two --test-only --partition=high {script}" in asked
    assert told["causes"][0]["command"] == "env SLURM_CLUSTERS=two scontrol update JobId=5 Partition=high"
    assert "in partition high it would start now (sbatch --test-only)" in told["causes"][0]["evidence"][1]


def test_a_controller_that_hangs_does_not_end_the_dry_run(slurm, tmp_path, capsys, monkeypatch):
    slurm(
        sbatch='case "$SLURM_CLUSTERS $1" in "two --test-only") exec sleep 60;; esac\n'
        'echo "sbatch: Job 9 to start at 2030-01-02T03:04:05 using 4 processors on nodes n1 in low" >&2',
        srun="exit 0",
        squeue="exit 0",
        sinfo=f'{HEADER}echo "low up 2 nodes"',
    )
    monkeypatch.setattr(sending, "PATIENT_SECONDS", 0.5)
    for name in ("one", "two"):
        profile = f"partition: low\ngpus_per_node: 0\nrun_root: {tmp_path}/runs\nclient: {{SLURM_CLUSTERS: {name}}}\n"
        (tmp_path / f"{name}.yaml").write_text(profile)
    words = ["submit", "recipe=quickstart", "device=cpu", "--dry-run"]
    told = say(capsys, *words, "cluster=./one.yaml,./two.yaml")
    assert "./one.yaml low 1 node: expected start 2030-01-02 03:04:05" in told
    silent = "when it would start is not known. Slurm does not answer: sbatch took more than 0.5 s"
    assert f"./two.yaml low 1 node: {silent}" in told
    assert silent in say(capsys, "doctor", "cluster=./two.yaml", code=1)


def test_several_qos_are_for_submit(slurm, tmp_path, capsys):
    said = 'case "$*" in *--version) ;; *) echo "sbatch: Job 9 to start at 2030-01-02T03:04:05 on n1" >&2;; esac'
    slurm(sbatch=said, srun="exit 0", squeue="exit 0", scontrol="exit 0", sinfo='echo "low up 2 nodes"')
    (tmp_path / "here.yaml").write_text("partition: low\ngpus_per_node: 0\nqos: a,b\n")
    make_run(tmp_path / "runs" / "run")
    new = ["recipe=quickstart", "device=cpu", "cluster=./here.yaml"]
    for words in (
        ["sweep", *new, "seed=1,2"],
        ["submit", *new, "--rehearse"],
        ["chain", "run", "cluster=./here.yaml", "--", "eval"],
    ):
        with pytest.raises(SystemExit) as ended:
            main([*words])
        assert ended.value.code == 2
        told = capsys.readouterr().err
        assert "slurm.qos=a,b: only `launch submit` waits in several QOS: give one here, as slurm.qos=a" in told
    assert "waits in        2 places" in say(capsys, "submit", *new, "--dry-run")
    found = say(capsys, "doctor", "cluster=./here.yaml")
    for qos in "ab":
        assert f"a job as the profile asks for would start at 2030-01-02 03:04:05 (slurm.qos={qos})" in found


def one_answers(slurm, state: str) -> None:
    """Cluster one says so of job 5; two does not answer."""
    row = f"5|{state}|N/A|10:00||None|run"
    slurm(
        squeue='if [ "$SLURM_CLUSTERS" = two ]; then echo "squeue: error: Unable to contact slurm controller" >&2; '
        f'exit 1; fi\n{HEADER}echo "{row}"',
        sacct="exit 1",
        scontrol="exit 1",
        scancel="exit 0",
    )


def test_a_run_that_may_still_wait_has_not_failed(slurm, tmp_path, capsys):
    queued_in_two_places(tmp_path / "run")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    (tmp_path / "run" / "status.json").write_text(json.dumps({**status, "updated": time.time() - 600}))
    one_answers(slurm, "CANCELLED")
    [row] = json.loads(say(capsys, "status", "run", "--root", ".", "--json"))
    assert (row["state"], row["over"], row["cluster"]) == ("queued", False, "two")
    assert "Unable to contact slurm controller" in row["reason"]


def test_cancel_says_what_it_did_not_reach(slurm, tmp_path, capsys):
    queued_in_two_places(tmp_path / "run")
    one_answers(slurm, "PENDING")
    told = say(capsys, "cancel", "run", "--root", ".")
    assert "run: not reached is job 5 on two, whose controller does not answer: it ends when it starts" in told
    assert "run: job 5 on one is cancelled" in told
    assert (tmp_path / "run" / "slurm" / "cancel").exists()


def test_runs_are_listed_with_each_cluster_on_which_they_wait(slurm, tmp_path, capsys):
    queued_in_two_places(tmp_path / "these" / "run")
    slurm(squeue=f'{HEADER}echo "5|PENDING|N/A|10:00||Priority|run"', sacct="exit 0")
    for name in ("one", "two"):
        assert "queued" in say(capsys, "status", f"cluster={name}", "--root", "these")
    assert "no runs" in say(capsys, "status", "cluster=three", "--root", "these")


def test_the_log_is_that_of_the_job_that_has_the_run(tmp_path):
    run = queued_in_two_places(tmp_path / "run")
    for number, name in enumerate(["request-1", "request-2"]):
        (run / "slurm" / name / "5_log.out").write_text(f"{name}\n")
        os.utime(run / "slurm" / name / "5_log.out", (number, number))
    follow(run, None, {"request": "request-1", "job_id": "5"})
    assert [file.parent.name for file in newest_batch_files(run)] == ["request-1"]


def test_a_node_is_left_out_on_the_cluster_on_which_it_failed(tmp_path):
    run = queued_in_two_places(tmp_path / "run")
    begun = {"start": 1.0, "step": 0, "nodes": ["n3", "n4"], "job_id": "5", "restart": 0}
    rows = [{"attempt": 1, **begun, "cluster": "one"}, {"attempt": 1, "end": 2.0, "step": 1, "node": "n3"}]
    rows += [{"attempt": 2, **begun, "cluster": "two"}, {"attempt": 2, "end": 2.0, "step": 1, "node": "n4"}]
    (run / "slurm" / "attempts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    profile = Profile(exclude="n9")
    assert without_bad_nodes(profile, run, "one").exclude == "n3,n9"
    assert without_bad_nodes(profile, run, "three").exclude == "n9"
    assert without_bad_nodes(profile, run).exclude == "n3,n4,n9"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cluster=./here.yaml,./here.yaml"], "./here.yaml is named twice"),
        (["cluster=./here.yaml,"], "a name is missing beside a comma"),
        (["cluster=./here.yaml", "slurm.qos=a,a"], "a is named twice"),
        (["cluster=./here.yaml", "slurm.qos=a,"], "a name is missing beside a comma"),
        (["cluster=./here.yaml", "--in", "5", "--grow"], "--grow: job 5 has its nodes already"),
        (["--in", "5", "--keep"], "--keep is for --rehearse"),
    ],
)
def test_a_place_is_named_once(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.yaml").write_text("partition: low\ngpus_per_node: 0\n")
    with pytest.raises(SystemExit) as ended:
        main(["submit", "recipe=quickstart", "device=cpu", *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_what_is_not_sent_is_not_described(slurm, tmp_path, capsys):
    """Of sizes with a gap, where Slurm refuses the largest."""
    slurm(
        sbatch='[ "$1" = --version ] && exit\nfor script; do :; done\ngrep -q -- --nodes=4 "$script" || '
        '{ echo "Submitted batch job 9"; exit; }\n'
        'echo "sbatch: error: Requested node configuration is not available" >&2; exit 1',
        srun="exit 0",
        squeue="exit 0",
        scontrol='echo "ClusterName = c"',
        sinfo='echo "low up 2 nodes"',
    )
    (tmp_path / "here.yaml").write_text("partition: low\ngpus_per_node: 0\n")
    words = ["recipe=quickstart", "device=cpu", "batch_size=64", "max_batch_per_device=16", "run.name=gap"]
    told = say(capsys, "submit", *words, "cluster=./here.yaml", "slurm.nodes=1-4", "--grow")
    assert "gap is job 9 on ./here.yaml: 1 or 2 nodes x 1 CPU rank, as are free at each start" in told
    # A job of one size has none to grow to, and others can be compared with it.
    record = json.loads((tmp_path / "runs" / "gap" / "slurm" / "request-1" / "job.json").read_text())
    assert (record["profile"]["nodes"], record["profile"]["grow"]) == (4, None)
    assert Profile(**record["profile"])


def test_a_run_in_a_job_of_the_users_own_is_not_waited_for(slurm, tmp_path, capsys):
    run = make_run(tmp_path / "runs" / "run", state="running")
    job = Job.to_send("run", "./here.yaml", Profile(gpus_per_node=0), run, run)
    (run / "slurm").mkdir(exist_ok=True)
    (run / "slurm" / "job.json").write_text(job_text(replace(job, held=True, steps="s"), "5"))
    (tmp_path / "here.yaml").write_text("partition: low\ngpus_per_node: 0\n")
    slurm(squeue='echo "5|RUNNING|N/A|10:00|||run"', sacct="exit 0", scontrol="exit 0")
    with pytest.raises(SystemExit) as ended:
        main(["chain", "run", "cluster=./here.yaml", "--", "eval"])
    assert ended.value.code == 2
    assert "run trains in job 5, which you hold: chain it when it is finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["[1]", '[{"note": 1}]', '{"a": 1}', "[", '[{"note": "a", "job": "b", "nodes": ["n1"]}]']
)
def test_notes_of_another_shape_are_passed_over(tmp_path, monkeypatch, content):
    monkeypatch.setattr("launch.runs.given.state_folder", lambda: tmp_path)
    (tmp_path / "given.json").write_text(content)
    allocation = Allocation("5", "5", "job", "low", "10:00", 600.0, [Node("n1", 8, 0)])
    with giving(allocation) as given:
        assert given.taken([]) == set()
        given.give(["n1"])
        assert given.taken([]) == {"n1"}
