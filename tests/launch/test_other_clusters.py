"""What is asked of clusters that a profile's `client` reaches, and of several QOS, by commands that play Slurm's."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from launch.cli import main
from launch.runs.job_record import Job, job_text
from resnet.rundir.status import write_status
from slurm import sbatch as sending
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
    run.mkdir()
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
