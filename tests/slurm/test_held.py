"""Runs in allocations that a user holds on a real Slurm: from inside and from elsewhere, stopped, and gone on with."""

from __future__ import annotations

import json
import os
import pty
import select
import shlex
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from resnet.rundir.provenance import read_provenance
from slurm.held import steps_name, supervisors_name
from tests.helpers import column, same, status, weights
from tests.slurm_helpers import Cluster, need_slurm, running_cluster, train_here

pytestmark = pytest.mark.timeout(600)
LOCAL = [sys.executable, "-m", "launch", "local"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """With a node to spare."""
    need_slurm()
    work = tmp_path_factory.mktemp("a folder with spaces")
    with running_cluster(tmp_path_factory.mktemp("cluster"), work, nodes=3, accounting=False) as running:
        yield running


@pytest.fixture
def held(cluster: Cluster) -> Iterator[str]:
    """An allocation of two nodes with two GPUs each, as `salloc --no-shell` leaves it."""
    said = cluster.ask("salloc", "--no-shell", "-N2", "--gres=gpu:2", "-c2").stderr
    job = said.split("allocation ")[1].split()[0]
    yield job
    cluster.ask("scancel", job)
    cluster.wait("the nodes are free", lambda: job not in cluster.queue())


def steps(cluster: Cluster, job: str) -> list[str]:
    """Names of the job's steps."""
    return cluster.ask("squeue", "-h", "-s", "-j", job, "-o", "%j", code=None).stdout.split()


class Terminal:
    """A command in a terminal of its own, in which keys are typed."""

    def __init__(self, cluster: Cluster, *command: object) -> None:
        self.shown = ""
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(cluster.work)
            os.execvpe(str(command[0]), [str(word) for word in command], cluster.environment)

    def read_until(self, ready: Callable[[], object], seconds: float = 200) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < deadline, self.shown
            if select.select([self._descriptor], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self._descriptor, 65536).decode(errors="replace")
                except OSError:
                    return

    def press_control_c(self) -> None:
        os.write(self._descriptor, b"\x03")

    def wait(self) -> int:
        """Until the command has ended; returns its exit code."""
        self.read_until(lambda: False)
        os.close(self._descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.parametrize(
    ("asked", "ranks", "size"),
    [
        (["-N2", "--ntasks-per-node=1", "--gres=gpu:1"], 2, "2 nodes x 1 GPU, 1 core a rank"),
        # Salloc makes one node of these two; there are fewer cores than ranks.
        (["-N2", "-n1", "--gres=gpu:2"], 2, "1 node x 2 GPUs, 1 core a rank"),
        (["-N2", "-c4", "--mem-per-cpu=10", "--cpu-ranks"], 4, "2 nodes x 2 CPU ranks, 2 cores a rank"),
    ],
)
def test_all_that_the_allocation_has_is_used(cluster: Cluster, tiny, tmp_path, monkeypatch, asked, ranks, size):
    # With another number of threads a CPU adds up in another order.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setitem(cluster.environment, "OMP_NUM_THREADS", "1")
    name = size.replace(" ", "-").replace(",", "")
    ours = ["--cpu-ranks", "2"] if "--cpu-ranks" in asked else []
    words = [word for word in [*tiny, "epochs=1"] if ours or word != "device=cpu"]
    asked = [word for word in asked if word != "--cpu-ranks"]
    done = cluster.ask("salloc", *asked, *LOCAL, *words, *ours, f"run.name={name}")
    run = cluster.run_dir(name)
    assert f"{name} trains in job {cluster.job(name)}: {size}" in done.stderr
    assert "finished: best top1" in done.stdout
    assert (status(run)["state"], status(run)["job_id"]) == ("finished", cluster.job(name))
    assert read_provenance(run)["world_size"] == ranks
    local = train_here([*tiny, "epochs=1"], tmp_path / "local", ranks)
    assert column(run, "train/loss") == column(local, "train/loss")
    assert same(weights(run), weights(local))


def test_control_c_saves_and_a_second_one_stops_at_once(cluster: Cluster, tiny):
    """In a shell that itself holds all that the job has."""
    words = shlex.join(map(str, [*LOCAL, *tiny, "epochs=200", "run.name=typed"]))
    shell = f"trap : INT; {words}; echo CODE=$?; {words}; echo CODE=$?; {words} max_steps=1"
    terminal = Terminal(cluster, "srun", "--exclusive", "-N1", "-n1", "--pty", "bash", "-c", shell)
    terminal.read_until(lambda: "/2000 " in terminal.shown)
    terminal.press_control_c()
    terminal.read_until(lambda: "CODE=85" in terminal.shown)
    run = cluster.run_dir("typed")
    stopped = status(run)
    assert (stopped["state"], stopped["failure"]) == ("stopped", None)
    assert stopped["reason"].startswith("interrupted")
    assert "launch retry typed" in terminal.shown
    assert "launch submit " in terminal.shown
    step = cluster.attempts("typed")[0]["last_step"]
    assert step > 0
    terminal.shown = ""
    terminal.read_until(lambda: "/2000 " in terminal.shown)
    terminal.press_control_c()
    time.sleep(0.1)
    terminal.press_control_c()
    terminal.read_until(lambda: "CODE=" in terminal.shown)
    assert "CODE=130" in terminal.shown
    assert cluster.attempts("typed")[1]["step"] == step
    assert terminal.wait() == 2


def test_from_a_login_node(cluster: Cluster, tiny, held):
    """Nothing is left on it; only the run's steps are signalled; the allocation stays."""
    beside = ["srun", f"--jobid={held}", "--overlap", "-N1", "-n1", "--job-name=beside", "sleep", "500"]
    other = Terminal(cluster, *beside)
    gpus = [word for word in tiny if word != "device=cpu"]
    # On two nodes it is to go on with the same micro-batches.
    words = ["submit", "--in", held, *gpus, "epochs=200", "slurm.nodes=1", "max_batch_per_device=4"]
    said = cluster.launch(*words, "run.name=first").stdout
    assert f"first trains in job {held}: 1 node x 2 GPUs, 1 core a rank; not used: 127.0.0.2 (2 GPUs); batch 16" in said
    cluster.wait_step("first", 2)
    said = cluster.launch(*words, "run.name=second").stdout
    assert "not used: 127.0.0.1 (another run)" in said
    assert "another run on each of its nodes" in cluster.launch(*words, "run.name=third", code=2).stderr
    assert f"is in the queue already: job {held}" in cluster.launch("retry", "first", "--in", held, code=2).stderr
    assert not cluster.run_dir("third").exists()
    cluster.wait_step("second", 2)
    row = json.loads(cluster.launch("status", "first", "--json").stdout)[0]
    assert (row["state"], row["job_id"], row["over"]) == ("running", held, False)
    assert "step" in cluster.launch("logs", "first").stdout

    assert "saves a checkpoint" in cluster.launch("cancel", "first").stdout
    supervisor = supervisors_name(steps_name(cluster.run_dir("first")))
    cluster.wait("the end", lambda: supervisor not in steps(cluster, held))
    row = json.loads(cluster.launch("status", "first", "--json").stdout)[0]
    assert (row["state"], row["reason"], row["over"]) == ("stopped", "cancelled", True)
    assert cluster.attempts("first")[0]["last_step"] >= 2
    assert "is not trained in job" in cluster.launch("cancel", "first", code=2).stderr
    assert "is killed" in cluster.launch("cancel", "second", "--now").stdout
    cluster.wait("the end", lambda: steps(cluster, held) == ["beside"])
    assert cluster.queue()[held] == "RUNNING"
    assert status(cluster.run_dir("second"))["state"] == "stopped"
    other.press_control_c()
    other.press_control_c()

    # On both nodes, from where it was.
    assert "--in JOBID continues it" in cluster.launch("retry", "first", code=2).stderr
    cluster.launch("retry", "first", "--in", held, "slurm.nodes=2")
    cluster.wait_step("first", cluster.attempts("first")[0]["last_step"] + 2, attempt=2)
    assert cluster.attempts("first")[1]["nodes"] == ["127.0.0.1", "127.0.0.2"]
    cluster.ask("scancel", held)
    cluster.wait("the run is stopped", lambda: status(cluster.run_dir("first"))["state"] == "stopped")
    ended = cluster.launch("status", "first").stdout
    assert "launch retry first" in ended


def test_before_the_allocation_ends_the_run_is_saved(cluster: Cluster, tiny):
    words = [*tiny, "epochs=400", "slurm.signal_lead=25", "run.name=limited"]
    done = cluster.ask("salloc", "-N1", "-t1", *LOCAL, *words, code=85)
    ended = status(cluster.run_dir("limited"))
    assert (ended["state"], ended["failure"]) == ("stopped", None)
    assert ended["reason"].startswith("walltime")
    assert "launch retry limited" in done.stderr
    attempt = cluster.attempts("limited")[0]
    assert (attempt["cause"], attempt["last_step"] > 0) == ("walltime", True)


def test_a_node_that_fails_is_replaced_where_one_is_spare(cluster: Cluster, tiny):
    words = [*tiny, "epochs=6", "checkpoint.every=5 steps", "slurm.nodes=2", "slurm.spare_nodes=1"]
    terminal = Terminal(cluster, "salloc", "-N3", *LOCAL, *words, "--cpu-ranks", "1", "run.name=mended")
    cluster.wait_step("mended", 12)
    cluster.fail_node("127.0.0.2")
    assert terminal.wait() == 0
    assert status(cluster.run_dir("mended"))["state"] == "finished"
    assert [attempt["nodes"] for attempt in cluster.attempts("mended")] == [
        ["127.0.0.1", "127.0.0.2"],
        ["127.0.0.1", "127.0.0.3"],
    ]


def test_a_failure_is_told_as_it_is_here(cluster: Cluster, tiny):
    broken = cluster.ask("salloc", "-N1", *LOCAL, *tiny, "optimizer.lr=1e30", "run.name=broken", code=1)
    assert status(cluster.run_dir("broken"))["failure"] == "nan"
    assert "optimizer.lr" in broken.stdout + broken.stderr
    setup = 'slurm.setup=["module load nothing-of-the-kind"]'
    done = cluster.ask("salloc", "-N1", *LOCAL, *tiny, setup, "run.name=bare", code=1)
    assert "slurm.setup failed: module load nothing" in done.stderr
    assert status(cluster.run_dir("bare"))["state"] == "failed"
    here = cluster.ask("salloc", "-N1", *LOCAL, *tiny, "--here", "slurm.nodes=1", code=2)
    assert "slurm.nodes=1 is for training in an allocation" in here.stderr


def test_with_here_it_trains_as_without_slurm(cluster: Cluster, tiny):
    cluster.ask("salloc", "-N2", *LOCAL, *tiny, "epochs=1", "--here", "run.name=here")
    run = cluster.run_dir("here")
    assert (status(run)["state"], read_provenance(run)["world_size"]) == ("finished", 1)
    assert not (run / "slurm").exists()
