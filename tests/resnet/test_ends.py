"""How a run ends when it is not let alone: signals, deaths, hangs, and a second process that wants the same run."""

import contextlib
import errno
import json
import os
import pty
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import resnet.evaluation
import resnet.loop
import resnet.rundir.lease
import resnet.tools.report.report
from resnet.checkpoint.commit import name_of, newest_first, newest_valid
from resnet.process.environment import ATTEMPT
from resnet.process.rank_logs import RANK_LOGS, node_folder, on_node
from resnet.rundir.failures import read_failures
from resnet.rundir.files import write_atomic
from resnet.rundir.lease import Lease, LeaseHeld, read_lease
from resnet.rundir.metrics_log import read_metrics
from resnet.rundir.provenance import read_provenance
from resnet.rundir.status import read_status, write_status
from resnet.tools.compare import compare_runs
from resnet.tracking.rank_log import RankLog
from resnet.tracking.watchdog import Watchdog
from tests.bench import kill
from tests.helpers import PROGRAM, finish, start
from tests.processes import start_ranks, wait_ranks

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")

SHORT = [
    *(word for word in kill.RECIPE if not word.startswith("data.")),
    *("data={source: synthetic, samples: 80, classes: 10, size: 24}", "data.num_workers=1", "device=cpu"),
    *("checkpoint.every=4 steps", "checkpoint.keep=2", "log_every=1", "epochs=2"),
]
"""10 steps, an evaluation after 5."""
SECONDS = 120
"""Within which ranks end, on a machine that does much else."""
LONG = [*SHORT, "epochs=2000", "eval.every=1000"]
"""Runs until it is stopped."""


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Ranks are forked from here, with what is patched here. The report would take most of such a short run."""
    monkeypatch.setattr(resnet.tools.report.report, "write_report", lambda run, *_, **options: run / "report.html")


@pytest.fixture
def in_step(monkeypatch) -> Callable[..., None]:
    """Have one rank call something at the beginning of a step."""
    forward = resnet.loop._forward

    def install(step: int, rank: int, what: Callable[[], object]) -> None:
        def patched(trainer, batch, turn):
            if (trainer.state.step, trainer.rank, turn) == (step, rank, 0):
                what()
            return forward(trainer, batch, turn)

        monkeypatch.setattr(resnet.loop, "_forward", patched)

    return install


def begin(folder: Path, recipe: list[str], *words: str, ranks: int = 1, name: str = "r") -> list[int]:
    return start_ranks([*recipe, f"run.root={folder}", f"run.name={name}", *words], ranks, folder / f"{name}.txt")


def wait_for(what: Callable[[], object], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def reaches(run: Path, step: int) -> Callable[[], bool]:
    return lambda: read_status(run).get("step", -1) >= step


def processes_of(sessions: list[int]) -> list[int]:
    """Processes of these sessions (each forked rank begins one, which its workers share) that are not zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) in sessions and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


def processes_with(mark: str) -> list[int]:
    """Processes whose environment has a word."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in environment.read_bytes():
                found.append(int(environment.parent.name))
    return found


def newest_step(run: Path) -> int:
    """Of the newest checkpoint; none may be damaged."""
    damaged: list[str] = []
    newest = newest_valid(run / "checkpoints", damaged.append)
    assert damaged == []
    assert newest is not None
    return int(newest.name.removeprefix("step-"))


# Signals


@pytest.mark.parametrize(
    ("number", "to_workers_too", "victims"),
    [(signal.SIGINT, True, [0, 1]), (signal.SIGTERM, False, [1]), (signal.SIGUSR2, True, [0])],
)
def test_a_signal_to_any_rank_stops_all_with_a_checkpoint(tmp_path, number, to_workers_too, victims):
    ranks = begin(tmp_path, LONG, ranks=2)
    run = tmp_path / "r"
    wait_for(reaches(run, 2))
    assert len(processes_of(ranks)) == 4, "each rank has a worker"
    for victim in victims:
        # A terminal signals a whole group at once, and a launcher passes the same on once more.
        for _ in range(2):
            os.killpg(ranks[victim], number) if to_workers_too else os.kill(ranks[victim], number)
    assert wait_ranks(ranks, SECONDS) == [85, 85]
    assert processes_of(ranks) == []
    found = read_status(run)
    assert (found["state"], found["reason"]) == ("stopped", f"signal {number.name}")
    step = newest_step(run)
    assert read_provenance(run)["attempts"][-1]["step"] == step == found["step"]
    text = (tmp_path / "r.txt").read_text()
    assert text.count("to continue: ") == 1
    assert f"stopped (signal {number.name}) after step {step}, with a checkpoint; to continue: python train.py" in text
    assert "Traceback" not in text
    words = shlex.split(text.rpartition("to continue: python train.py ")[2])
    assert wait_ranks(start_ranks([*words, f"max_steps={step + 1}"], 2, tmp_path / "r.txt"), SECONDS) == [0, 0]
    assert [row["step"] for row in read_metrics(run) if "lr" in row] == [*range(1, step + 2)]


def test_an_evaluation_that_is_stopped_is_done_again(tmp_path, monkeypatch):
    words = ["epochs=1", "eval.batch_size=2"]
    assert wait_ranks(begin(tmp_path, SHORT, *words, ranks=2, name="straight"), SECONDS) == [0, 0]
    count = resnet.evaluation.count_batch
    counted = []

    def signalled(*arguments):
        counted.append(1)
        if len(counted) == 3 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        count(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(resnet.evaluation, "count_batch", signalled)
        assert wait_ranks(begin(tmp_path, SHORT, *words, ranks=2), SECONDS) == [85, 85]
    run = tmp_path / "r"
    assert newest_step(run) == 5
    assert not [row for row in read_metrics(run) if "val/loss" in row]
    assert wait_ranks(begin(tmp_path, SHORT, *words, ranks=2), SECONDS) == [0, 0]
    assert compare_runs(tmp_path / "straight", run) == []


def test_a_second_interrupt_leaves_at_once(tmp_path, in_step):
    run, within = tmp_path / "r", tmp_path / "within a step"

    def last():
        within.touch()
        time.sleep(250)

    in_step(6, 0, last)
    ranks = begin(tmp_path, LONG)
    wait_for(lambda: within.exists() and (run / "checkpoints" / name_of(4)).is_dir())
    os.kill(ranks[0], signal.SIGINT)
    time.sleep(2.3)
    assert os.waitpid(ranks[0], os.WNOHANG) == (0, 0)

    def told() -> bool:
        # Again: one that comes within two seconds of the first is the same one.
        os.kill(ranks[0], signal.SIGINT)
        return "stopped at once" in (tmp_path / "r.txt").read_text()

    wait_for(told)
    assert wait_ranks(ranks, SECONDS) == [130]
    wait_for(lambda: not processes_of(ranks))
    assert newest_step(run) in (4, 5), "whole, whether or not that of the epoch's end was done"


def test_the_last_save_counts(tmp_path, in_step):
    """A run whose last checkpoint is not on the disk has not finished."""
    run = tmp_path / "r"

    def fill_the_disk():
        def rename(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        os.rename = rename

    in_step(9, 0, fill_the_disk)
    assert wait_ranks(begin(tmp_path, SHORT), SECONDS) == [1]
    found = read_status(run)
    assert (found["state"], found["failure"]) == ("failed", "disk")
    assert "No space left on device" in found["reason"]
    assert not (run / "final.safetensors").exists()
    in_step(-1, 0, lambda: None)
    assert wait_ranks(begin(tmp_path, SHORT), SECONDS) == [0]
    assert newest_step(run) == 10


# Launchers


def launch(folder: Path, ranks: int, mark: str):
    several = ["--multi_gpu"] if ranks > 1 else []
    command = ["-m", "accelerate.commands.launch", *several, "--num_processes", ranks, "train.py", *LONG]
    return start(*command, f"run.root={folder}", "run.name=r", on_cores=2, TEST_MARK=mark, CUDA_VISIBLE_DEVICES="")


def test_the_death_of_the_launcher_stops_the_run(tmp_path):
    mark = f"launched-{os.getpid()}-{tmp_path.name}"
    launcher = launch(tmp_path, 1, mark)
    run = tmp_path / "r"
    try:
        wait_for(reaches(run, 2))
        assert len(processes_with(mark)) >= 3, "launcher, trainer and worker"
        launcher.kill()
        launcher.wait()
        wait_for(lambda: read_status(run)["state"] != "running")
        wait_for(lambda: not processes_with(mark))
    finally:
        for process in processes_with(mark):
            os.kill(process, signal.SIGKILL)
        finish(launcher)
    assert (read_status(run)["state"], read_status(run)["reason"]) == ("stopped", "signal SIGTERM")
    assert newest_step(run) == read_provenance(run)["attempts"][-1]["step"]


def test_the_death_of_a_rank_ends_the_job(tmp_path):
    mark = f"launched-{os.getpid()}-{tmp_path.name}"
    launcher = launch(tmp_path, 2, mark)
    run = tmp_path / "r"
    try:
        wait_for(lambda: reaches(run, 6)() and newest_first(run / "checkpoints"))
        os.kill(json.loads((run / "logs" / "rank-0.json").read_text())["pid"], signal.SIGKILL)
        done = finish(launcher)
        wait_for(lambda: not processes_with(mark))
    finally:
        for process in processes_with(mark):
            os.kill(process, signal.SIGKILL)
    assert done.returncode not in (0, None)
    found = read_status(run)
    assert (found["state"], found["failure"]) == ("failed", "killed")
    assert found["reason"].startswith(f"rank 0 on {socket.gethostname()}, after step ")
    assert "training failed: rank 0 on" in done.stderr
    assert "to continue from it: accelerate launch --multi_gpu --num_processes 2 " in done.stderr


# Failures of one rank of several


@pytest.mark.parametrize(("ranks", "victim", "kept"), [(2, 0, "all"), (4, 2, "first")])
def test_the_rank_that_was_killed_is_named(tmp_path, in_step, monkeypatch, ranks, victim, kept):
    monkeypatch.setenv(RANK_LOGS, kept)
    in_step(5, victim, lambda: os.kill(os.getpid(), signal.SIGKILL))
    children = begin(tmp_path, LONG, ranks=ranks)
    codes = wait_ranks(children, 60)
    assert codes == [-9 if rank == victim else 1 for rank in range(ranks)]
    wait_for(lambda: not processes_of(children))
    words = f"rank {victim} on {socket.gethostname()}, after step 5: the process was killed"
    assert read_status(tmp_path / "r")["reason"] == words
    assert (tmp_path / "r.txt").read_text().count(f"training failed: {words}") == 1
    assert (tmp_path / "r" / "logs" / "rank-1.log").exists() == (kept == "all")
    folder = node_folder(tmp_path / "r", 1)
    left = [*folder.glob("*")]
    shutil.rmtree(folder, ignore_errors=True)
    # What the killed one could not take away.
    names = ["rank-2.json", "rank-2.log"] if kept == "first" else []
    assert sorted(left) == [on_node(tmp_path / "r", 1, name) for name in names]


@pytest.mark.parametrize("kept", ["all", "first"])
def test_the_rank_that_failed_first_is_named(tmp_path, in_step, monkeypatch, kept):
    monkeypatch.setenv(RANK_LOGS, kept)

    def fail():
        raise RuntimeError("the disk of this rank is gone")

    in_step(5, 1, fail)
    assert wait_ranks(begin(tmp_path, LONG, ranks=2), SECONDS) == [1, 1]
    run = tmp_path / "r"
    found = read_status(run)
    words = f"rank 1 on {socket.gethostname()}, after step 5: RuntimeError: the disk of this rank is gone"
    assert (found["state"], found["failure"], found["reason"]) == ("failed", "crash", words)
    assert "in fail\n" in (run / "logs" / "rank-1.log").read_text(), "a traceback"
    text = (tmp_path / "r.txt").read_text()
    assert f"training failed: {words}\nthe newest checkpoint is step-" in text
    assert f"; to continue from it: python train.py {LONG[0]} " in text


def test_a_hang_ends_with_the_stacks(tmp_path, in_step):
    def hang():
        time.sleep(1000)

    in_step(3, 1, hang)
    ranks = begin(tmp_path, LONG, "watchdog=0.1", ranks=2)
    assert wait_ranks(ranks, SECONDS) == [1, 1]
    wait_for(lambda: not processes_of(ranks))
    run = tmp_path / "r"
    found = read_status(run)
    assert (found["state"], found["failure"]) == ("failed", "hang")
    assert "step 3: no step for 0.1 minutes (a hang)" in found["reason"]
    assert "in hang\n" in (run / "logs" / "rank-1.log").read_text()


@pytest.mark.parametrize(("minutes", "in_job", "short"), [(20, True, 60), (60, True, 180), (20, False, 1200)])
def test_a_hang_is_noticed_soon_where_steps_are_quick_and_a_job_starts_again(
    tmp_path, monkeypatch, minutes, in_job, short
):
    if in_job:
        monkeypatch.setenv(ATTEMPT, "1")
    watchdog, long = Watchdog(minutes, RankLog(tmp_path, 0), 0), 60 * minutes
    limits = []
    for step in range(12):
        watchdog.step_made(step, kind=step // 6)
        if step == 10:
            watchdog.expect_long()
        limits.append(watchdog.limit())
    watchdog.rest()
    limits.append(watchdog.limit())
    watchdog.stop()
    # The first three of a kind may be compiled for, and one that waits for a checkpoint takes its time.
    assert limits == [long] * 4 + [short] * 2 + [long] * 4 + [long, short] + [long]


def test_time_in_which_the_process_was_stopped_is_no_hang(tmp_path):
    """As by scontrol suspend, a debugger or the lid of a laptop."""
    script = tmp_path / "stopped.py"
    script.write_text(
        "import sys, time\nfrom pathlib import Path\n"
        "from resnet.tracking.rank_log import RankLog\nfrom resnet.tracking.watchdog import Watchdog\n"
        "watchdog = Watchdog(3 / 60, RankLog(Path(sys.argv[1]), 0), 0)\nprint('begun', flush=True)\n"
        "sys.stdin.readline()\nprint('lives', flush=True)\ntime.sleep(20)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(PROGRAM)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, script, tmp_path], env=environment, **pipes) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(4)
        process.send_signal(signal.SIGCONT)
        # Longer than it takes to look.
        time.sleep(1)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "lives\n"
        # Where it hangs in truth, it ends as ever.
        assert process.wait(15) == 1


def test_a_rank_of_an_earlier_attempt_says_nothing_of_the_one_that_lives(tmp_path, monkeypatch):
    monkeypatch.setenv(ATTEMPT, "1")
    zombie = RankLog(tmp_path, 1, 2, attempt=4)
    monkeypatch.setenv(ATTEMPT, "2")
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    write_status(tmp_path, state="running", attempts=5)
    now = RankLog(tmp_path, 0, 2, attempt=5)
    zombie.fail(1, 3, "lost the others", "hang", own_fault=True)
    assert read_status(tmp_path)["state"] == "running"
    assert read_failures(tmp_path / "logs" / "attempt-2") == []
    assert not now.knows_of_a_hang()
    now.fail(1, 4, "no step", "hang", own_fault=True)
    assert read_status(tmp_path)["reason"] == "rank 0 on n7, after step 4: no step"
    assert now.knows_of_a_hang()


# One writer


def test_a_run_has_one_writer(tmp_path):
    first = begin(tmp_path, LONG)
    run = tmp_path / "r"
    wait_for(reaches(run, 2))
    begun = (run / "provenance.json").read_bytes()
    assert wait_ranks(
        start_ranks([*LONG, f"run.root={tmp_path}", "run.name=r"], 1, tmp_path / "second.txt"), SECONDS
    ) == [2]
    who = f"{run} is being trained by process {first[0]} on {socket.gethostname()}"
    assert who in (tmp_path / "second.txt").read_text()
    assert (run / "provenance.json").read_bytes() == begun
    step = read_status(run)["step"]
    wait_for(reaches(run, step + 2))

    os.kill(first[0], signal.SIGKILL)
    assert wait_ranks(first, SECONDS) == [-9]
    assert read_lease(run)["pid"] == first[0]
    third = begin(tmp_path, LONG, "max_steps=1000")
    wait_for(lambda: read_status(run)["pid"] == third[0] and read_status(run)["step"] > 2)
    os.kill(third[0], signal.SIGTERM)
    assert wait_ranks(third, SECONDS) == [85]
    assert "waiting up to" not in (tmp_path / "r.txt").read_text()
    assert not (run / "lease.json").exists()


def test_a_run_that_was_taken_over_stops_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(resnet.rundir.lease, "RENEW_SECONDS", 0.2)
    ranks = begin(tmp_path, LONG, "checkpoint.every=10000 steps", ranks=2)
    run = tmp_path / "r"
    wait_for(reaches(run, 2))
    other = {"host": "elsewhere", "pid": 7, "job_id": None, "token": "another", "count": 1, "time": 0}
    while any(pid in processes_of(ranks) for pid in ranks) and read_lease(run) != other:
        write_atomic(run / "lease.json", json.dumps(other))
        time.sleep(0.3)
    assert wait_ranks(ranks, SECONDS) == [1, 1]
    assert read_lease(run) == other
    assert read_status(run)["state"] == "running"
    assert read_provenance(run)["attempts"][-1]["end"] is None
    assert newest_first(run / "checkpoints") == []
    assert list(run.glob("logs/failure-*")) == []
    assert f"another process has taken {run} over" in (tmp_path / "r.txt").read_text()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Callable[[int], None]:
    """Writes the lease of another machine that holds the run in tmp_path, renewed so often."""
    monkeypatch.setattr(resnet.rundir.lease, "STALE_SECONDS", 3.0)

    def renew(count: int) -> None:
        holder = {"host": "elsewhere", "pid": 7, "job_id": "12", "token": "another", "count": count, "time": 0}
        write_atomic(tmp_path / "lease.json", json.dumps(holder))

    return renew


def test_a_dead_lease_of_another_machine_is_taken_over(tmp_path, elsewhere):
    elsewhere(1)
    told: list[str] = []
    lease = Lease(tmp_path)
    lease.acquire(told.append)
    assert "process 7 on elsewhere, job 12" in told[0]
    assert read_lease(tmp_path)["pid"] == os.getpid()
    assert lease.check()
    lease.release()
    assert not (tmp_path / "lease.json").exists()


def test_a_living_lease_of_another_machine_is_respected(tmp_path, elsewhere):
    elsewhere(1)
    renewal = threading.Timer(0.5, elsewhere, [2])
    renewal.start()
    with pytest.raises(LeaseHeld, match="process 7 on elsewhere, job 12: stop that one first"):
        Lease(tmp_path).acquire(lambda _: None)
    renewal.join()
    assert read_lease(tmp_path)["count"] == 2


def test_a_lease_given_back_is_free_at_once(tmp_path, elsewhere, monkeypatch):
    monkeypatch.setattr(resnet.rundir.lease, "STALE_SECONDS", 100.0)
    elsewhere(1)
    threading.Timer(0.5, (tmp_path / "lease.json").unlink).start()
    lease = Lease(tmp_path)
    lease.acquire(lambda _: None)
    lease.release()


# Weights & Biases


def test_offline_wandb_over_two_restarts(tmp_path, in_step, monkeypatch):
    for name in ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    words = ["wandb.mode=offline"]
    in_step(3, 0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert wait_ranks(begin(tmp_path, SHORT, *words), SECONDS) == [85]
    run = tmp_path / "r"
    identity = (run / "wandb_id.txt").read_text()
    in_step(6, 0, lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert wait_ranks(begin(tmp_path, SHORT, *words), SECONDS) == [-9]
    in_step(-1, 0, lambda: None)
    assert wait_ranks(begin(tmp_path, SHORT, *words), SECONDS) == [0]
    assert (run / "wandb_id.txt").read_text() == identity

    rows = read_metrics(run)
    assert [row["step"] for row in rows if "lr" in row] == list(range(1, 11))
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    line = (tmp_path / "r.txt").read_text().rpartition("to do so: ")[2].splitlines()[0]
    program, sync, flag, given, pattern = line.split()
    assert (program, sync, flag, given) == ("wandb", "sync", "--id", identity.strip())
    assert len(list(tmp_path.glob(str(Path(pattern).relative_to(tmp_path))))) == 3


def test_a_closed_terminal_stops_the_run_with_a_checkpoint(tmp_path):
    run = tmp_path / "run"
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(PROGRAM)
        words = [*LONG, f"run.root={tmp_path}", "run.name=run"]
        os.execv(sys.executable, [sys.executable, "train.py", *words])
    deadline = time.monotonic() + 200
    while (read_status(run).get("step") or 0) < 3 and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            os.read(terminal, 10_000)
    os.close(terminal)
    assert wait_ranks([child], SECONDS) == [85]
    status = read_status(run)
    assert (status["state"], status["reason"]) == ("stopped", "signal SIGHUP")
    assert newest_valid(run / "checkpoints", print) is not None
