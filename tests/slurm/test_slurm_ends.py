"""Runs on a real Slurm that are signalled, preempted, requeued, killed and cancelled, and are still the same runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from resnet.checkpoint.commit import name_of
from resnet.process.environment import SCRIPT
from tests.helpers import column, metrics, newest, same, status, weights
from tests.slurm_helpers import ON_CLUSTER, Cluster, need_slurm, running_cluster, tell_ranks, train_here

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """With a node to spare."""
    need_slurm()
    work = tmp_path_factory.mktemp("a folder with spaces")
    with running_cluster(tmp_path_factory.mktemp("cluster"), work, nodes=3) as running:
        yield running


def hold_until_the_limit(cluster: Cluster, name: str) -> None:
    """Stop the processes of a run that trains until Slurm has announced its time limit, which it does in a minute.

    On a fast machine it would be done before.
    """
    run = cluster.run_dir(name)
    cluster.wait("the first attempt", lambda: cluster.attempts(name))
    announced = cluster.attempts(name)[0]["start"] + 62
    while (status(run).get("step") or 0) < 3 and time.time() < announced:
        time.sleep(0.1)
    tell_ranks(run, signal.SIGSTOP)
    time.sleep(max(0, announced - time.time()))
    tell_ranks(run, signal.SIGCONT)


def test_interrupted_in_every_way_it_ends_as_if_it_had_not_been(cluster: Cluster, tiny, tmp_path):
    words = [*tiny, "epochs=12", "eval.every=12", "checkpoint.every=20 steps"]
    cluster.launch("submit", *words, *ON_CLUSTER, "wandb.mode=offline", "run.name=hit")
    # On one rank and short: each attempt has a minute, on a machine that does much else.
    short = [*tiny, "epochs=4", "eval.every=4"]
    limit = ["slurm.gpus_per_node=1", "slurm.time=2", "slurm.signal_lead=60"]
    cluster.launch("submit", *short, *ON_CLUSTER, *limit, "run.name=timed")
    holding = ThreadPoolExecutor().submit(hold_until_the_limit, cluster, "timed")
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

    references = {"hit": train_here(words, tmp_path / "two ranks", 2), "timed": train_here(short, tmp_path / "one", 1)}
    holding.result()
    for name, steps in (("hit", 120), ("timed", 40)):
        ended = cluster.wait_end(name)
        run, reference = cluster.run_dir(name), references[name]
        assert (ended["state"], ended["reason"], ended["step"]) == ("finished", "finished", steps)
        assert same(weights(run), weights(reference))
        assert same(
            weights(run / newest(run), "model.safetensors"), weights(reference / newest(reference), "model.safetensors")
        )
        assert [row["step"] for row in metrics(run, "train/loss")] == list(range(1, steps + 1))
        assert column(run, "train/loss") == column(reference, "train/loss")
    stuck = cluster.attempts("stuck")[0]
    assert (stuck["outcome"], stuck["cause"], stuck["fruitless"]) == ("killed", "walltime", True)
    assert cluster.attempts("stuck")[1]["restart"] == 1
    # Three such attempts in a row are the last.
    cluster.launch("cancel", "stuck", "--now", code=None)
    attempts = cluster.attempts("hit")
    assert [attempt["restart"] for attempt in attempts] == [0, 1, 2, 3]
    assert [attempt["outcome"] for attempt in attempts] == ["stopped"] * 3 + ["finished"]
    assert [attempt["cause"] for attempt in attempts] == ["preempted"] * 3 + [None]
    assert status(cluster.run_dir("hit"))["attempts"] == 4
    # Nothing that a signal announced was lost.
    assert all(after["step"] == before["last_step"] > before["step"] for before, after in pairwise(attempts))
    assert (cluster.run_dir("hit") / "wandb_id.txt").read_text() == wandb_id
    assert len(cluster.attempts("timed")) > 1


def test_a_killed_rank_costs_seconds_and_no_place_in_the_queue(cluster: Cluster, tiny, tmp_path):
    words = [*tiny, "epochs=12", "eval.every=12", "checkpoint.every=5 steps", "watchdog=0.3"]
    nodes = ["slurm.nodes=2", "slurm.gpus_per_node=1"]
    cluster.launch("submit", *words, *ON_CLUSTER, *nodes, "run.name=killed")
    job, run = cluster.job("killed"), cluster.run_dir("killed")
    cluster.wait_step("killed", 7)
    users_own = ["srun", "--overlap", "--ntasks=1", "--nodes=1", f"--jobid={job}", "sleep", "300"]
    step = subprocess.Popen(users_own, env=cluster.environment)
    cluster.wait("the user's own step", lambda: "sleep" in cluster.ask("squeue", "-s", "-h", "-o", "%j").stdout)
    os.kill(int(json.loads((run / "logs" / "rank-1.json").read_text())["pid"]), signal.SIGKILL)
    cluster.wait_step("killed", 20, attempt=2)
    assert step.poll() is None
    step.terminate()
    # Rank 0 too, which holds the lease.
    os.kill(int(json.loads((run / "logs" / "rank-0.json").read_text())["pid"]), signal.SIGKILL)
    cluster.wait_step("killed", 40, attempt=3)
    os.kill(int(json.loads((run / "logs" / "rank-1.json").read_text())["pid"]), signal.SIGSTOP)
    ended = cluster.wait_end("killed")
    assert (ended["state"], ended["step"], ended["attempts"]) == ("finished", 120, 4)
    attempts = cluster.attempts("killed")
    assert {attempt["job_id"] for attempt in attempts} == {job}
    assert [attempt["restart"] for attempt in attempts] == [0, 0, 0, 0]
    assert [attempt["cause"] for attempt in attempts] == ["killed", "killed", "hang", None]
    assert [attempt.get("node") for attempt in attempts] == ["127.0.0.2", "127.0.0.1", "127.0.0.2", None]
    assert attempts[1]["in_place"] == "rank 1 on 127.0.0.2 was killed"
    # Where rank 1 was stopped while the others saved, rank 0 waits for its part and in no collective.
    stopped = r"rank 1 on .*: it is stopped or hangs, .*no step for 0.3 minutes .a hang.( in gloo:\S+ .*)?; the stacks"
    assert re.match(stopped, attempts[3]["in_place"])
    assert same(weights(run), weights(train_here(words, tmp_path / "reference", 2)))


def test_a_node_that_fails_costs_no_more_than_a_checkpoint_interval(cluster: Cluster, tiny):
    words = [*tiny, "epochs=12", "eval.every=12", "checkpoint.every=5 steps"]
    cluster.launch("submit", *words, *ON_CLUSTER, "slurm.gpus_per_node=1", "run.name=moved")
    saved = cluster.run_dir("moved") / "checkpoints" / name_of(10)
    cluster.wait("a checkpoint", saved.is_dir)
    [node] = cluster.attempts("moved")[0]["nodes"]
    cluster.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    job = cluster.job("moved")
    cluster.wait("the job to lose its node", lambda: cluster.queue().get(job) != "RUNNING")
    # It may have come back by itself.
    cluster.ask("scontrol", "update", f"NodeName={node}", "State=RESUME", code=None)
    ended = cluster.wait_end("moved")
    assert (ended["state"], ended["step"], ended["attempts"]) == ("finished", 120, 2)
    assert cluster.attempts("moved")[1]["step"] >= 10


def test_a_name_that_does_not_resolve_ends_the_job(cluster: Cluster, tiny):
    wrong = "slurm.environment.MASTER_ADDR=no-such-node.invalid"
    cluster.launch("submit", *tiny, *ON_CLUSTER, wrong, "run.name=nameless")
    ended = cluster.wait_end("nameless")
    assert (ended["state"], ended["failure"]) == ("failed", "crash")
    assert "no-such-node.invalid, does not resolve" in ended["reason"]


def test_cancel_saves_and_retry_goes_on(cluster: Cluster, tiny):
    words = [*tiny, "epochs=12", "eval.every=12", *ON_CLUSTER, "slurm.gpus_per_node=1", "run.name=paused"]
    cluster.launch("submit", *words)
    cluster.wait_step("paused", 3)
    again = cluster.launch("submit", *words, code=2).stderr
    assert "in the queue already" in again
    cluster.launch("cancel", "paused")
    ended = cluster.wait_end("paused")
    assert (ended["state"], ended["failure"], ended["reason"]) == ("stopped", "user", "cancelled")
    saved = cluster.attempts("paused")[0]["last_step"]
    assert saved >= 3
    said = cluster.launch("retry", "paused").stdout
    assert f"continues from step {saved}" in said
    ended = cluster.wait_end("paused")
    assert (ended["state"], ended["step"], ended["attempts"]) == ("finished", 120, 2)
    assert cluster.attempts("paused")[1]["step"] == saved
    assert "is finished" in cluster.launch("submit", *words, code=2).stderr


def test_a_users_scancel_is_not_requeued(cluster: Cluster, tiny):
    one_rank = [*ON_CLUSTER, "slurm.gpus_per_node=1"]
    cluster.launch("submit", *tiny, "epochs=200", *one_rank, "run.name=scancelled")
    cluster.wait_step("scancelled", 2)
    # A batch script that is killed can requeue nothing: its first rank does.
    place = json.loads((cluster.run_dir("scancelled") / "logs" / "rank-0.json").read_text())
    environment = Path(f"/proc/{place['pid']}/environ").read_bytes().decode()
    [script] = re.findall(rf"\b{SCRIPT}=(\d+)", environment)
    os.kill(int(script), signal.SIGKILL)
    cluster.wait_step("scancelled", 2, attempt=2)
    cluster.ask("scancel", cluster.job("scancelled"))
    cluster.wait_end("scancelled")
    # The batch script's last word, which on a busy machine comes after the queue has forgotten the job.
    cluster.wait("who stopped it", lambda: status(cluster.run_dir("scancelled"))["failure"])
    ended = status(cluster.run_dir("scancelled"))
    assert (ended["state"], ended["failure"]) == ("stopped", "user"), ended["reason"]
    assert [attempt["restart"] for attempt in cluster.attempts("scancelled")] == [0, 1]


def test_a_signal_while_data_is_staged_is_a_stop(cluster: Cluster, tiny):
    cluster.launch("submit", *tiny, *ON_CLUSTER, 'slurm.stage=["sleep 100"]', "run.name=staging")
    cluster.wait("the first attempt", lambda: cluster.attempts("staging"))

    def told() -> bool:
        # Again: Slurm loses one that comes between a step and its processes.
        cluster.ask("scancel", "--signal=USR2", cluster.job("staging"), code=None)
        return "end" in cluster.attempts("staging")[0]

    cluster.wait("its end", told)
    assert cluster.attempts("staging")[0]["outcome"] == "stopped"
    cluster.wait("its turn", lambda: status(cluster.run_dir("staging"))["state"] == "queued")
    assert "is cancelled" in cluster.launch("cancel", "staging", "--now").stdout


def test_a_spare_takes_the_place_of_a_node_that_fails(cluster: Cluster, tiny, tmp_path):
    # The last test: the node stays away.
    words = [*tiny, "epochs=12", "eval.every=12", "checkpoint.every=5 steps"]
    nodes = ["slurm.nodes=2", "slurm.gpus_per_node=1", "slurm.spare_nodes=1"]
    cluster.launch("submit", *words, *ON_CLUSTER, *nodes, "run.name=spared")
    cluster.wait_step("spared", 7)
    cluster.fail_node("127.0.0.2")
    ended = cluster.wait_end("spared")
    assert (ended["state"], ended["step"], ended["attempts"]) == ("finished", 120, 2)
    before, after = cluster.attempts("spared")
    assert before["nodes"] == ["127.0.0.1", "127.0.0.2"]
    assert (before["cause"], before["node"]) == ("node", "127.0.0.2")
    assert (after["restart"], after["nodes"]) == (0, ["127.0.0.1", "127.0.0.3"])
    assert same(weights(cluster.run_dir("spared")), weights(train_here(words, tmp_path / "reference", 2)))
