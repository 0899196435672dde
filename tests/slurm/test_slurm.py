"""Runs on a real Slurm: how they are sent, what they train, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slurm.code_copy import take_snapshot
from tests.fabricated import a_sweep
from tests.helpers import PROGRAM, column, furthest, status, weights
from tests.slurm_helpers import ON_CLUSTER, Cluster, train_here

HEAVY = ["torch", "torchvision", "accelerate", "wandb", "datasets"]


def test_two_nodes_train_what_local_ranks_train(cluster: Cluster, tiny, tmp_path):
    """And data is staged once on each of them."""
    words = [*tiny, "epochs=2"]
    where = f"slurm.scratch={tmp_path}"
    stage = f'slurm.stage=["cp -r {tmp_path}/source $SCRATCH/$SLURMD_NODENAME", "echo here >> $SCRATCH/log"]'
    (tmp_path / "source").mkdir()
    # What another job, or a user's defaults, would say to sbatch and to torch.
    others = {
        "SBATCH_TIMELIMIT": "1",
        "SBATCH_JOB_NAME": "x",
        "SLURM_ARRAY_TASK_ID": "7",
        "RANK": "3",
        "WORLD_SIZE": "8",
    }
    cluster.environment |= others
    said = cluster.launch("submit", *words, *ON_CLUSTER, where, stage, "slurm.nodes=2", "run.name=two nodes").stdout
    for name in others:
        del cluster.environment[name]
    job = cluster.job("two nodes")
    assert f"job {job} on local-test: 2 nodes x 2 GPUs" in said
    assert "launch logs 'two nodes' -f" in said
    local = train_here(words, tmp_path / "local", 4)
    ended = cluster.wait_end("two nodes")
    run = cluster.run_dir("two nodes")
    assert (ended["state"], ended["attempts"], ended["job_id"]) == ("finished", 1, job)
    assert (tmp_path / "log").read_text() == "here\nhere\n"
    assert {"127.0.0.1", "127.0.0.2"} <= {path.name for path in tmp_path.iterdir()}
    assert column(run, "train/loss") == column(local, "train/loss")
    assert column(run, "val/loss") == pytest.approx(column(local, "val/loss"), rel=1e-6)
    assert furthest(weights(run), weights(local)) < 1e-6
    assert sorted(path.name for path in (run / "logs" / "attempt-1").glob("rank-*")) == [
        f"rank-{r}.log" for r in range(4)
    ]
    logs = cluster.launch("logs", "two nodes").stdout
    assert "finished: best top1" in logs
    row = cluster.launch("status", "two nodes").stdout
    assert "finished" in row


def test_the_job_runs_the_code_as_it_was_sent(cluster: Cluster, tiny, tmp_path):
    program = take_snapshot(tmp_path / "somewhere")
    source = program / "resnet" / "run.py"
    source.write_text(source.read_text() + '\nimport os\nprint("CODE AS SENT", os.environ["IN_CONTAINER"])\n')
    words = [*tiny, "epochs=1", *ON_CLUSTER, "slurm.sbatch.hold=true", f"run.root={tmp_path}", "run.name=old"]
    # On one rank, behind a command that stands for a container's.
    words += ["slurm.gpus_per_node=1", "slurm.container=env IN_CONTAINER=yes", f"slurm.python={sys.executable}"]
    cluster.environment["PYTHONPATH"] = str(program)
    cluster.launch("submit", *words, cwd=program)
    cluster.environment["PYTHONPATH"] = str(PROGRAM)
    source.write_text(source.read_text().replace("CODE AS SENT", "EDITED") + "\nraise SystemExit(3)\n")
    job = next(job for job, state in cluster.queue().items() if state == "PENDING")
    cluster.ask("scontrol", "release", job)
    cluster.wait("the end", lambda: job not in cluster.queue())
    said = (tmp_path / "old" / "logs" / "attempt-1" / "rank-0.log").read_text()
    assert status(tmp_path / "old")["state"] == "finished", said
    assert "CODE AS SENT yes" in said
    assert "EDITED" not in said


def test_data_that_cannot_be_staged_ends_the_job(cluster: Cluster, tiny):
    cluster.launch("submit", *tiny, *ON_CLUSTER, 'slurm.stage=["echo no room; exit 3"]', "run.name=unstaged")
    ended = cluster.wait_end("unstaged")
    assert (ended["state"], ended["failure"]) == ("failed", "data")
    assert "staging failed on 127.0.0." in ended["reason"]
    assert "no room" in ended["reason"]


def test_a_setup_that_fails_ends_the_job(cluster: Cluster, tiny):
    cluster.launch("submit", *tiny, *ON_CLUSTER, 'slurm.setup=["module load nothing-of-the-kind"]', "run.name=bare")
    cluster.wait_end("bare")
    assert "slurm.setup failed: module load nothing" in cluster.launch("logs", "bare", "--batch").stdout
    cluster.wait("accounting", lambda: "failed" in cluster.launch("status", "bare").stdout.splitlines()[0])


def test_a_chain_follows_a_run_to_its_true_end(cluster: Cluster, tiny):
    one_rank = [*ON_CLUSTER, "slurm.gpus_per_node=1"]
    cluster.launch("submit", *tiny, "epochs=1", *one_rank, "run.name=base")
    words = [
        "prune",
        "--amount",
        "0.5",
        "--",
        "train",
        "epochs=1",
        "run.name=more",
        "--",
        "quantize",
        "--backend",
        "onnx",
    ]
    said = cluster.launch("chain", "base", "--", *words, "--", "export", "--format", "torch").stdout
    assert f"4 steps on local-test, afterok:{cluster.job('base')}" in said
    assert "is under way" in cluster.launch("chain", "base", "--", "report", code=2).stderr
    # A job that is requeued has not ended: what waits for it goes on waiting.
    cluster.wait("the first attempt", lambda: cluster.attempts("base"))
    cluster.ask("scontrol", "requeue", cluster.job("base"))
    assert not cluster.run_dir("more").exists()
    cluster.wait("the second attempt", lambda: len(cluster.attempts("base")) == 2)
    assert "chain 1/4: prune queued" in cluster.launch("status").stdout

    cluster.wait("the chain's end", lambda: not cluster.queue())
    more = cluster.run_dir("more")
    for run in ("base", "base-pruned", "more"):
        assert status(cluster.run_dir(run))["state"] == "finished"
    assert "loaded 56 tensors from" in cluster.launch("logs", "more").stdout
    kept = {path.name: {file.name for file in path.iterdir()} for path in (more / "exports").iterdir()}
    assert kept == {"int8-onnx": {"model.onnx", "artefact.json"}, "torch": {"model.pth", "model.py", "artefact.json"}}
    told = cluster.launch("status", "base").stdout
    assert "chain       4/4: export finished" in told
    assert f"job {cluster.job('more')}, makes more" in told


def test_a_chain_of_a_sweeps_winner_ends_where_a_step_fails(cluster: Cluster):
    folder = a_sweep(cluster.run_dir("study"), slow=70.0, best=80.0, broken=None)
    words = [*ON_CLUSTER, "slurm.gpus_per_node=0", "--", "report", "--", "eval", "--csv", "figures.txt", "--", "report"]
    cluster.launch("chain", "study", *words)
    cluster.wait("the chain's end", lambda: not cluster.queue())
    assert (folder / "best" / "report.html").is_file()
    found = json.loads(cluster.launch("status", "study", "--json").stdout)["chain"]
    assert [row["state"] for row in found] == ["finished", "failed", "skipped"]
    assert found[1]["reason"].startswith("resnet eval: --csv figures.txt: give a file")
    # What waits is cancelled with what it waits for.
    cluster.launch("chain", "study", *words[:2], "slurm.sbatch.hold=true", "--", "report", "--", "report")
    assert "of its chain are cancelled" in cluster.launch("cancel", "study").stdout
    cluster.wait("an empty queue", lambda: not cluster.queue())
    assert "1/2: report cancelled" in cluster.launch("status", "study").stdout


# Mistakes: a short message, exit 2, and nothing left behind


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["slurm.partition=hihg"], "slurm.partition=hihg: `sinfo -s` lists the partitions"),
        (["slurm.account=nobody"], "slurm.account=nobody"),
        (["slurm.gpus_per_node=3", "batch_size=48"], "slurm.gpus_per_node=3"),
        (["slurm.gpu_type=h100"], "slurm.gpu_type=h100"),
        (["slurm.nodse=2"], "did you mean nodes?"),
        (["slurm.time=soon"], "slurm.time=soon (command line): must be minutes, HH:MM:SS"),
        (["slurm.nodes=2", "batch_size=6"], "batch_size 6 does not divide"),
        (["model.pretrained=/no/such.pth"], "model.pretrained=/no/such.pth"),
        (["optimizer.lrr=1"], "did you mean optimizer.lr?"),
        (["cluster=local-tset"], "give one cluster=NAME"),
        (["run.name=50%"], "Slurm reads % in paths"),
    ],
)
def test_mistakes_leave_nothing(cluster: Cluster, tiny, tmp_path, words, message):
    done = cluster.launch("submit", *tiny, *ON_CLUSTER, f"run.root={tmp_path}", *words, code=2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) <= 4
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != ".code"] == []
    assert "PENDING" not in cluster.queue().values()


def test_the_submit_limit_leaves_nothing(cluster: Cluster, tiny, tmp_path):
    words = [*tiny, *ON_CLUSTER, "slurm.account=tiny", "slurm.sbatch.hold=true", f"run.root={tmp_path}"]
    cluster.launch("submit", *words, "run.name=first")
    done = cluster.launch("submit", *words, "run.name=second", code=2)
    assert "limit" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [".code", "first"]
    said = cluster.launch("cancel", tmp_path / "first").stdout
    assert "is cancelled" in said
    assert status(tmp_path / "first")["reason"] == "cancelled"


def test_to_submit_imports_nothing_that_takes_seconds(cluster: Cluster, tiny, tmp_path):
    words = ["submit", *tiny, *ON_CLUSTER, "slurm.sbatch.hold=true", f"run.root={tmp_path}", "run.name=light"]
    code = f"""
import sys
from launch import cli
try:
    cli.main({words!r})
except SystemExit as left:
    print(left.code, [name for name in {HEAVY!r} if name in sys.modules])
"""
    assert cluster.ask(sys.executable, "-c", code).stdout.splitlines()[-1] == "0 []"
    cluster.launch("cancel", tmp_path / "light")


def test_a_rehearsal_leaves_a_bad_node_out_and_tells_what_the_job_takes(cluster: Cluster, tiny, tmp_path):
    # A node that computes wrong cannot be had: there the check is told so.
    python = tmp_path / "python"
    python.write_text(
        f"""#!/bin/sh
[ "$SLURMD_NODENAME" = 127.0.0.1 ] && [ "$2" = resnet.tools.check_node ] || exec {sys.executable} "$@"
exec {sys.executable} -c 'import sys
from resnet.tools import check_node
check_node.wrong_products = lambda device: ["1 wrong number"]
check_node.main(sys.argv[1:])' "$3"
"""
    )
    python.chmod(0o755)
    where = [*ON_CLUSTER, f"slurm.python={python}", "slurm.gpus_per_node=1", "slurm.spare_nodes=1"]
    # For the spare node; the second start does not count.
    where.append("slurm.max_requeues=1")
    said = cluster.launch("submit", "--rehearse", "--keep", *tiny, *where, "run.name=tried").stdout
    run = cluster.run_dir("tried-rehearsal")
    attempts = cluster.attempts(run.name)
    assert [attempt["nodes"] for attempt in attempts] == [["127.0.0.1"], ["127.0.0.2"], ["127.0.0.2"]]
    assert [attempt.get("last_step") for attempt in attempts] == [0, 3, 4]
    assert (status(run)["state"], status(run)["reason"]) == ("stopped", "rehearsed")
    assert "note   without 127.0.0.1: 1 wrong number" in said
    for stage in ("start check", "imports", "first step", "last save", "second start"):
        assert f"\n  {stage}" in said
    assert "went on from the checkpoint and left" in said
    assert "without 127.0.0.1: 1 wrong number" in cluster.launch("status", run.name).stdout


def test_python_submits_as_the_command_does(cluster: Cluster, tmp_path):
    code = f"""
import sys, launch, resnet
recipe = resnet.load_recipe("quickstart", {{"run.root": {str(tmp_path)!r}, "run.name": "python", "batch_size": 16}})
run = launch.submit(recipe, cluster="local-test", time="0:05:00", sbatch={{"hold": True}})
print(type(run) is resnet.Run, run.path, run.status["state"], [name for name in {HEAVY!r} if name in sys.modules])
try:
    launch.submit("quickstart", cluster="local-test", nodse=2)
except ValueError as error:
    print(error)
"""
    first, mistake, *_ = cluster.ask(sys.executable, "-c", code).stdout.splitlines()
    assert first == f"True {tmp_path / 'python'} queued []"
    assert "did you mean nodes?" in mistake
    assert "is cancelled" in cluster.launch("cancel", tmp_path / "python").stdout


def test_a_dry_run_sends_nothing(cluster: Cluster, tiny, tmp_path):
    said = cluster.launch("submit", *tiny, *ON_CLUSTER, "slurm.nodes=2", f"run.root={tmp_path}", "--dry-run").stdout
    assert "#SBATCH --ntasks-per-node=2" in said
    assert "batch 16, 4 per rank" in said
    assert "expected start  20" in said
    assert list(tmp_path.iterdir()) == []


def test_without_slurm_the_message_says_where_to_go(tiny, tmp_path):
    path = os.pathsep.join(str(Path(shutil.which(name) or "").parent) for name in ("git",))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").symlink_to(shutil.which("git") or path)
    done = subprocess.run(
        [sys.executable, "-m", "launch", "submit", *tiny, *ON_CLUSTER],
        cwd=tmp_path,
        env=os.environ | {"PATH": str(tmp_path / "bin"), "PYTHONPATH": str(PROGRAM)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "no sbatch on this machine" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_doctor_finds_the_test_cluster_in_order(cluster: Cluster):
    assert "BAD" not in cluster.launch("doctor", "cluster=local-test").stdout
    said = cluster.launch("doctor", "cluster=local-test", "slurm.partition=none", code=1).stdout
    assert "BAD  slurm.partition=none is none of them" in said
