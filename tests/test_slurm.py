"""Runs on a real Slurm: sent, signalled, preempted, requeued, killed, cancelled, and still the same runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from slurm.snapshot import take_snapshot
from tests.helpers import PROGRAM, TINY, column, furthest, metrics, newest, same, status, weights
from tests.processes import start_ranks, wait_ranks
from tests.slurm_helpers import ON_CLUSTER, Cluster, need_slurm, running_cluster

need_slurm()

HEAVY = ["torch", "torchvision", "accelerate", "wandb", "datasets"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, shapes):
    folder = tmp_path_factory.mktemp("cluster")
    work = tmp_path_factory.mktemp("a folder with spaces")
    with running_cluster(folder, work) as running:
        yield running


@pytest.fixture
def tiny(shapes) -> list[str]:
    return [*TINY, f"data.train={shapes}"]


def train_here(words: list, run: Path, ranks: int) -> Path:
    """The same run without Slurm, on so many ranks with a thread each."""
    words = [*words, f"run.root={run.parent}", f"run.name={run.name}"]
    children = start_ranks([str(word) for word in words], ranks, run.parent / f"{run.name}.log")
    assert wait_ranks(children, 120) == [0] * ranks, (run.parent / f"{run.name}.log").read_text()
    return run


def test_two_nodes_train_what_local_ranks_train(cluster: Cluster, tiny, tmp_path):
    words = [*tiny, "epochs=2"]
    # What another job, or a user's defaults, would say to sbatch and to torch.
    others = {
        "SBATCH_TIMELIMIT": "1",
        "SBATCH_JOB_NAME": "x",
        "SLURM_ARRAY_TASK_ID": "7",
        "RANK": "3",
        "WORLD_SIZE": "8",
    }
    cluster.environment |= others
    said = cluster.launch("submit", *words, *ON_CLUSTER, "slurm.nodes=2", "run.name=two nodes").stdout
    for name in others:
        del cluster.environment[name]
    job = cluster.job("two nodes")
    assert f"job {job} on local-test: 2 nodes x 2 GPUs" in said
    assert "launch logs 'two nodes' -f" in said
    local = train_here(words, tmp_path / "local", 4)
    ended = cluster.wait_end("two nodes")
    run = cluster.run_dir("two nodes")
    assert (ended["state"], ended["attempts"], ended["job_id"]) == ("finished", 1, job)
    assert column(run, "train/loss") == column(local, "train/loss")
    assert column(run, "val/loss") == pytest.approx(column(local, "val/loss"), rel=1e-6)
    assert furthest(weights(run), weights(local)) < 1e-6
    assert sorted(path.name for path in (run / "logs" / "attempt-1").iterdir()) == [f"rank-{r}.log" for r in range(4)]
    logs = cluster.launch("logs", "two nodes").stdout
    assert "finished: best top1" in logs
    row = cluster.launch("status", "two nodes").stdout
    assert "finished" in row


def test_interrupted_in_every_way_it_ends_as_if_it_had_not_been(cluster: Cluster, tiny, tmp_path):
    words = [*tiny, "epochs=30", "eval.every=30", "checkpoint.every=20 steps", "wandb.mode=offline"]
    for name in ("hit", "timed"):
        limit = "slurm.time=1" if name == "timed" else "slurm.time=5"
        cluster.launch("submit", *words, *ON_CLUSTER, limit, "slurm.signal_lead=10", f"run.name={name}")
    # What it stages at the end of its time does not listen: the batch script has to be quicker than Slurm.
    deaf = """slurm.stage=["trap '' USR2; sleep 200"]"""
    no_gpu = ["slurm.gpus_per_node=0", "slurm.time=1", "slurm.signal_lead=10"]
    cluster.launch("submit", *words, *ON_CLUSTER, *no_gpu, deaf, "run.name=stuck")
    job = cluster.job("hit")

    cluster.wait_step("hit", 5)
    cluster.ask("scancel", "--signal=USR2", job)
    cluster.wait("the next attempt", lambda: len(cluster.attempts("hit")) == 2)
    wandb_id = (cluster.run_dir("hit") / "wandb_id.txt").read_text()

    cluster.wait_step("hit", cluster.attempts("hit")[1]["step"] + 3, attempt=2)
    cluster.ask("scontrol", "requeue", job)
    cluster.wait("the next attempt", lambda: len(cluster.attempts("hit")) == 3)

    cluster.wait_step("hit", cluster.attempts("hit")[2]["step"] + 3, attempt=3)
    node = cluster.attempts("hit")[2]["nodes"][0]
    high = ["--partition=high", "--gres=gpu:2", f"--nodelist={node}", "--output=/dev/null"]
    cluster.ask("sbatch", *high, "--wrap", "sleep 1")
    cluster.wait("the next attempt", lambda: len(cluster.attempts("hit")) == 4)

    reference = train_here([*words, "wandb.mode=disabled"], tmp_path / "reference", 2)
    for name in ("hit", "timed"):
        ended = cluster.wait_end(name, 240)
        run = cluster.run_dir(name)
        assert (ended["state"], ended["reason"], ended["step"]) == ("finished", "finished", 300)
        assert same(weights(run), weights(reference))
        assert same(
            weights(run / newest(run), "model.safetensors"), weights(reference / newest(reference), "model.safetensors")
        )
        assert [row["step"] for row in metrics(run, "train/loss")] == list(range(1, 301))
        assert column(run, "train/loss") == column(reference, "train/loss")
    stuck = cluster.attempts("stuck")[0]
    assert (stuck["outcome"], stuck["cause"], stuck["fruitless"]) == ("killed", "walltime", True)
    assert cluster.job("stuck") in cluster.queue()
    cluster.launch("cancel", "stuck", "--now")
    attempts = cluster.attempts("hit")
    assert [attempt["restart"] for attempt in attempts] == [0, 1, 2, 3]
    assert [attempt["outcome"] for attempt in attempts] == ["stopped"] * 3 + ["finished"]
    assert status(cluster.run_dir("hit"))["attempts"] == 4
    # Nothing that a signal announced was lost.
    assert all(after["step"] == before["last_step"] > before["step"] for before, after in pairwise(attempts))
    assert (cluster.run_dir("hit") / "wandb_id.txt").read_text() == wandb_id
    timed = cluster.attempts("timed")
    assert len(timed) > 1
    assert {attempt["cause"] for attempt in timed[:-1]} == {"walltime"}


def test_a_killed_rank_ends_the_job_and_is_named(cluster: Cluster, tiny):
    cluster.launch(
        "submit", *tiny, "epochs=200", *ON_CLUSTER, "slurm.nodes=2", "slurm.gpus_per_node=1", "run.name=killed"
    )
    cluster.wait_step("killed", 3)
    run = cluster.run_dir("killed")
    os.kill(int(json.loads((run / "logs" / "rank-1.json").read_text())["pid"]), signal.SIGKILL)
    ended = cluster.wait_end("killed", 60)
    assert (ended["state"], ended["failure"]) == ("failed", "killed")
    assert ended["reason"].startswith("rank 1 on 127.0.0.2 was killed")
    assert len(cluster.attempts("killed")) == 1
    said = cluster.launch("retry", "killed", "--exclude-bad-nodes", "slurm.nodes=1", "slurm.gpus_per_node=2").stdout
    assert "not on 127.0.0.2" in said
    cluster.wait_step("killed", 4, attempt=2)
    assert cluster.attempts("killed")[1]["nodes"] == ["127.0.0.1"]
    cluster.launch("cancel", "killed", "--now")
    assert cluster.wait_end("killed")["reason"] == "cancelled"


def test_a_name_that_does_not_resolve_ends_the_job(cluster: Cluster, tiny):
    wrong = "slurm.environment.MASTER_ADDR=no-such-node.invalid"
    cluster.launch("submit", *tiny, *ON_CLUSTER, wrong, "run.name=nameless")
    ended = cluster.wait_end("nameless", 60)
    assert (ended["state"], ended["failure"]) == ("failed", "crash")
    assert "no-such-node.invalid, does not resolve" in ended["reason"]


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


def test_cancel_saves_and_retry_goes_on(cluster: Cluster, tiny):
    cluster.launch("submit", *tiny, "epochs=40", "eval.every=40", *ON_CLUSTER, "run.name=paused")
    cluster.wait_step("paused", 3)
    again = cluster.launch("submit", *tiny, "epochs=40", "eval.every=40", *ON_CLUSTER, "run.name=paused", code=2).stderr
    assert "in the queue already" in again
    cluster.launch("cancel", "paused")
    ended = cluster.wait_end("paused")
    assert (ended["state"], ended["failure"], ended["reason"]) == ("stopped", "user", "cancelled")
    saved = cluster.attempts("paused")[0]["last_step"]
    assert saved >= 3
    said = cluster.launch("retry", "paused").stdout
    assert f"goes on from step {saved}" in said
    ended = cluster.wait_end("paused", 120)
    assert (ended["state"], ended["step"], ended["attempts"]) == ("finished", 400, 2)
    assert cluster.attempts("paused")[1]["step"] == saved
    assert (
        "is finished"
        in cluster.launch("submit", *tiny, "epochs=40", "eval.every=40", *ON_CLUSTER, "run.name=paused", code=2).stderr
    )


def test_a_users_scancel_is_not_requeued(cluster: Cluster, tiny):
    cluster.launch("submit", *tiny, "epochs=200", *ON_CLUSTER, "run.name=scancelled")
    cluster.wait_step("scancelled", 2)
    cluster.ask("scancel", cluster.job("scancelled"))
    ended = cluster.wait_end("scancelled")
    assert (ended["state"], ended["failure"]) == ("stopped", "user")
    assert len(cluster.attempts("scancelled")) == 1


def test_data_is_staged_once_on_each_node(cluster: Cluster, tiny, tmp_path):
    where = f"slurm.scratch={tmp_path}"
    stage = f'slurm.stage=["cp -r {tmp_path}/source $SCRATCH/$SLURMD_NODENAME", "echo here >> $SCRATCH/log"]'
    (tmp_path / "source").mkdir()
    cluster.launch("submit", *tiny, "epochs=1", *ON_CLUSTER, where, stage, "slurm.nodes=2", "run.name=staged")
    assert cluster.wait_end("staged")["state"] == "finished"
    assert (tmp_path / "log").read_text() == "here\nhere\n"
    assert {"127.0.0.1", "127.0.0.2"} <= {path.name for path in tmp_path.iterdir()}
    cluster.launch("submit", *tiny, *ON_CLUSTER, 'slurm.stage=["echo no room; exit 3"]', "run.name=unstaged")
    ended = cluster.wait_end("unstaged")
    assert (ended["state"], ended["failure"]) == ("failed", "data")
    assert "staging failed on 127.0.0." in ended["reason"]
    assert "no room" in ended["reason"]


def test_a_signal_while_data_is_staged_is_a_stop(cluster: Cluster, tiny):
    cluster.launch("submit", *tiny, *ON_CLUSTER, 'slurm.stage=["sleep 100"]', "run.name=staging")
    cluster.wait("the first attempt", lambda: cluster.attempts("staging"))
    step = f"{cluster.job('staging')}.0"
    cluster.wait("its step", lambda: step in cluster.ask("squeue", "-s", "-h", "-o", "%i").stdout.split())
    cluster.ask("scancel", "--signal=USR2", cluster.job("staging"))
    cluster.wait("its end", lambda: "end" in cluster.attempts("staging")[0])
    assert cluster.attempts("staging")[0]["outcome"] == "stopped"
    assert status(cluster.run_dir("staging"))["state"] == "queued"
    assert "is cancelled" in cluster.launch("cancel", "staging", "--now").stdout


def test_a_setup_that_fails_ends_the_job(cluster: Cluster, tiny):
    cluster.launch("submit", *tiny, *ON_CLUSTER, 'slurm.setup=["module load nothing-of-the-kind"]', "run.name=bare")
    cluster.wait_end("bare")
    assert "slurm.setup failed: module load nothing" in cluster.launch("logs", "bare", "--batch").stdout
    cluster.wait("accounting", lambda: "failed" in cluster.launch("status", "bare").stdout.splitlines()[0], 20)


# Mistakes: a short message, exit 2, and nothing left behind


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["slurm.partition=hihg"], "slurm.partition=hihg: `sinfo -s` lists the partitions"),
        (["slurm.account=nobody"], "slurm.account=nobody"),
        (["slurm.gpus_per_node=3", "batch_size=48"], "slurm.gpus_per_node=3"),
        (["slurm.gpu_type=h100"], "slurm.gpu_type=h100"),
        (["slurm.nodse=2"], "did you mean nodes?"),
        (["slurm.time=soon"], "slurm.time=soon (command line): must be minutes"),
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
