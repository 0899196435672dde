"""What the ranks of a run printed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch import cli
from launch.commands import logs
from launch.runs import asked as slurms_word
from resnet.rundir.status import write_status
from slurm.queue import Job

ROOT = Path(__file__).parents[2]


@pytest.fixture
def launch(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*words):
        with pytest.raises(SystemExit) as left:
            cli.main(["logs", *words])
        out, err = capsys.readouterr()
        return left.value.code, out, err

    return call


@pytest.fixture
def meanwhile(monkeypatch):
    """Do something in each pause of a command that follows a log, which must then end by itself."""

    def install(*actions):
        left = list(actions)

        def sleep(_):
            assert left, "it goes on after the end"
            left.pop(0)()

        monkeypatch.setattr(logs.time, "sleep", sleep)
        return left

    return install


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "runs" / "r"
    (folder / "slurm").mkdir(parents=True)
    (folder / "recipe.yaml").touch()
    return folder


def write(run_dir: Path, rank: int, text: str, attempt: int | None = None) -> None:
    folder = run_dir / "logs" / (f"attempt-{attempt}" if attempt else "")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"rank-{rank}.log", "a") as file:
        file.write(text)


def failure(run_dir: Path, rank: int, at: float, own_fault: bool = True, attempt: int | None = None) -> None:
    record = {"rank": rank, "host": "n1", "step": 3, "reason": f"reason {rank}", "time": at, "own_fault": own_fault}
    folder = run_dir / "logs" / (f"attempt-{attempt}" if attempt else "")
    (folder / f"failure-{rank}.json").write_text(json.dumps(record))


def in_slurm(run_dir: Path, monkeypatch, *answers: Job) -> list:
    """A job of a run; Slurm gives one answer after the other, and the last one for ever."""
    (run_dir / "slurm" / "job.json").write_text('{"job_id": "5"}')
    left = list(answers)
    monkeypatch.setattr(slurms_word, "queued", lambda client: {"5": left.pop(0) if len(left) > 1 else left[0]})
    monkeypatch.setattr(slurms_word, "accounted", lambda _: {})
    return left


def test_the_newest_attempt_and_rank_0_are_shown(run_dir, launch):
    for attempt in (1, 2, 10):
        for rank in (0, 1, 2, 10):
            write(run_dir, rank, f"attempt {attempt} rank {rank}\nno newline at the end", attempt)
    write(run_dir, 0, "the trainer's own\n")
    write_status(run_dir, state="finished")
    assert launch("r") == (0, "attempt 10 rank 0\nno newline at the end", "")
    assert launch("r", "--rank", "10")[1].startswith("attempt 10 rank 10\n")
    assert launch("r", "--attempt", "1", "--rank", "2")[1].startswith("attempt 1 rank 2\n")
    code, out, err = launch("r", "--rank", "3")
    assert (code, out, err) == (2, "", "launch logs: no log of rank 3 of attempt 10: there are 0-2, 10\n")
    code, _, err = launch("r", "--attempt", "3")
    assert (code, err) == (2, "launch logs: no logs of attempt 3: there are 1-2, 10\n")


def test_a_local_run_has_one_log_a_rank(run_dir, launch):
    write(run_dir, 0, "zero\n")
    write(run_dir, 1, "one\n")
    write_status(run_dir, state="stopped")
    assert launch("r") == (0, "zero\n", "")
    assert launch("r", "--rank", "1") == (0, "one\n", "")
    assert launch("r", "-f") == (0, "zero\n", "")
    code, _, err = launch("r", "--attempt", "1")
    assert code == 2
    assert "leave out --attempt" in err
    assert launch("r", "--rank", "2")[2] == "launch logs: no log of rank 2: there are 0-1\n"


def test_bytes_that_are_no_text_are_printed_as_they_are(run_dir, capfdbinary, monkeypatch):
    (run_dir / "logs").mkdir()
    content = b"\r 3%\r 4% \xff\xfe\n" * 100_000
    (run_dir / "logs" / "rank-0.log").write_bytes(content)
    write_status(run_dir, state="finished")
    monkeypatch.chdir(run_dir.parent.parent)
    with pytest.raises(SystemExit):
        cli.main(["logs", "r"])
    assert capfdbinary.readouterr().out == content


def test_of_a_failed_run_the_rank_that_failed_first_is_shown(run_dir, launch):
    for attempt in (1, 2):
        for rank in range(4):
            write(run_dir, rank, f"attempt {attempt} rank {rank}\n", attempt)
    write_status(run_dir, state="failed", failure="oom", reason="rank 1 on n1, after step 3: reason 1\n  more")
    failure(run_dir, 0, at=100, own_fault=False)
    failure(run_dir, 1, at=102)
    failure(run_dir, 2, at=101)
    assert launch("r") == (0, "attempt 2 rank 2\n", "failed first: rank 2 on n1, after step 3: reason 2\n")
    assert launch("r", "--attempt", "2")[1] == "attempt 2 rank 2\n"
    assert launch("r", "--attempt", "1") == (0, "attempt 1 rank 0\n", "")
    assert launch("r", "--rank", "3") == (0, "attempt 2 rank 3\n", "")


def test_a_rank_that_was_killed_left_no_record_but_is_named_in_the_reason(run_dir, launch):
    for rank in range(4):
        write(run_dir, rank, f"rank {rank}\n", 1)
        if rank != 3:
            failure(run_dir, rank, at=100 + rank, own_fault=False)
    write_status(run_dir, state="failed", failure="killed", reason="rank 3 on n2: killed by signal 9\n  tail")
    assert launch("r") == (0, "rank 3\n", "failed first: rank 3 on n2: killed by signal 9\n")
    write_status(run_dir, reason="srun ended with code 1")
    assert launch("r") == (0, "rank 0\n", "failed first: rank 0 on n1, after step 3: reason 0\n")


def test_failures_of_attempts_before_do_not_count(run_dir, launch):
    for rank in range(2):
        write(run_dir, rank, f"rank {rank}\n")
    failure(run_dir, 7, at=1000)
    failure(run_dir, 1, at=5000)
    (run_dir / "provenance.json").write_text(json.dumps({"attempts": [{"start": 900}, {"start": 4000}]}))
    write_status(run_dir, state="failed")
    assert launch("r")[1] == "rank 1\n"
    (run_dir / "logs" / "failure-1.json").write_text("{")
    assert launch("r") == (0, "rank 0\n", "")
    # In a job each attempt has its own, to which a rank of an earlier one that still lives does not add.
    for attempt, rank in [(1, 0), (2, 1)]:
        write(run_dir, 0, "rank 0\n", attempt)
        write(run_dir, 1, "rank 1\n", attempt)
        failure(run_dir, rank, 5000 - rank, attempt=attempt)
    assert launch("r")[1] == "rank 1\n"


def test_nothing_yet(run_dir, launch, monkeypatch):
    write_status(run_dir, state="queued")
    in_slurm(run_dir, monkeypatch, Job("PENDING", "Resources"))
    assert launch("r") == (0, "", "no log yet: the run is queued (Resources)\n")
    assert launch("r", "--batch") == (0, "", "no log yet: the run is queued (Resources)\n")
    assert launch("r", "--attempt", "1")[2] == "launch logs: no logs of attempt 1: there are none yet\n"
    write_status(run_dir, state="failed", reason="no such partition")
    (run_dir / "slurm" / "job.json").unlink()
    assert launch("r")[2] == "no log: the run is failed (no such partition)\n"
    assert launch("r", "-f")[2] == "no log: the run is failed (no such partition)\n"


def test_follow_from_the_queue_over_a_requeue_to_the_end(run_dir, launch, monkeypatch, meanwhile):
    write_status(run_dir, state="queued")
    begun = time.time() - 100
    running = Job("RUNNING", start=begun)
    answers = in_slurm(run_dir, monkeypatch, Job("PENDING", "Priority"), running, running, Job("PENDING"), running)

    def starts(attempt):
        write(run_dir, 0, f"{attempt}: one\n", attempt)
        write_status(run_dir, state="running")

    def stops():
        write(run_dir, 0, "1: last\n", 1)
        write_status(run_dir, state="stopped")

    def ends():
        write_status(run_dir, state="finished")
        write(run_dir, 0, "2: last\n", 2)

    left = meanwhile(
        lambda: None,
        lambda: starts(1),
        lambda: write(run_dir, 0, "1: two\n", 1),
        stops,
        lambda: write_status(run_dir, state="queued"),
        lambda: starts(2),
        ends,
    )
    code, out, err = launch("r", "-f")
    assert (code, left) == (0, [])
    assert out == "1: one\n1: two\n1: last\n2: one\n2: last\n"
    assert err == "no log yet: the run is queued (Priority)\n==> logs/attempt-2/rank-0.log <==\n"
    assert answers == [running]


def test_follow_ends_with_a_run_that_stopped_and_is_not_requeued(run_dir, launch, monkeypatch, meanwhile):
    write(run_dir, 0, "one\n", 1)
    write_status(run_dir, state="running")
    in_slurm(run_dir, monkeypatch, Job("RUNNING", start=5.0), Job("COMPLETED"))
    left = meanwhile(lambda: write_status(run_dir, state="stopped"))
    assert launch("r", "-f") == (0, "one\n", "")
    assert left == []


def test_follow_ends_with_a_job_that_is_gone(run_dir, launch, monkeypatch, meanwhile):
    write(run_dir, 0, "one\n", 1)
    (run_dir / "status.json").write_text(json.dumps({"state": "running", "updated": 5}))
    in_slurm(run_dir, monkeypatch, Job("RUNNING", start=1.0), Job("NODE_FAIL"))
    clock = [0.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: clock[0])

    def an_hour_later():
        clock[0] += 3600

    left = meanwhile(an_hour_later)
    assert launch("r", "-f") == (0, "one\n", "")
    assert left == []


def test_follow_asks_slurm_seldom(run_dir, launch, monkeypatch, meanwhile):
    write_status(run_dir, state="queued")
    in_slurm(run_dir, monkeypatch, Job("PENDING", "Priority"))
    asked = []
    monkeypatch.setattr(
        slurms_word, "queued", lambda client: asked.append(clock[0]) or {"5": Job("PENDING", "Priority")}
    )
    clock = [0.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: clock[0])

    def half_a_second():
        clock[0] += 0.5

    meanwhile(*[half_a_second] * 1200, lambda: write_status(run_dir, state="finished"))
    launch("r", "-f")
    assert asked[:5] == [0, 5, 15, 35, 75]
    assert len(asked) < 16


def test_follow_asks_nothing_while_the_log_grows_and_soon_after_a_change(run_dir, launch, monkeypatch, meanwhile):
    asked, clock = [], [0.0]
    in_slurm(run_dir, monkeypatch)
    monkeypatch.setattr(
        slurms_word, "queued", lambda client: asked.append(clock[0]) or {"5": Job("RUNNING", start=5.0)}
    )
    monkeypatch.setattr(logs.time, "monotonic", lambda: clock[0])
    write_status(run_dir, state="running")

    def passes(seconds, grows=False):
        clock[0] += seconds
        if grows:
            write(run_dir, 0, "more\n", 1)

    grows = [lambda: passes(1, grows=True)] * 100
    is_silent = [lambda: passes(1)] * 200
    meanwhile(
        *grows,
        *is_silent,
        lambda: write_status(run_dir, state="stopped"),
        *[lambda: passes(1)] * 6,
        lambda: write_status(run_dir, state="finished"),
    )
    assert launch("r", "-f")[1] == "more\n" * 100
    assert asked == [0, 105, 110, 120, 140, 180, 240, 300, 300, 305]


def test_follow_keeps_to_the_attempt_that_is_asked_for(run_dir, launch, meanwhile):
    write(run_dir, 0, "1: one\n", 1)
    write_status(run_dir, state="running", host="another-machine")
    meanwhile(lambda: write(run_dir, 0, "2: one\n", 2), lambda: write_status(run_dir, state="finished"))
    assert launch("r", "-f", "--attempt", "1") == (0, "1: one\n", "")


def test_follow_reads_a_file_that_was_replaced_or_cut_from_its_beginning(run_dir, launch, meanwhile):
    write(run_dir, 0, "a long first line\n")
    write_status(run_dir, state="running", host="another-machine")
    file = run_dir / "logs" / "rank-0.log"

    def replace():
        file.rename(file.with_name("old"))
        write(run_dir, 0, "replaced, and longer than the one before\n")

    meanwhile(lambda: file.write_text("cut\n"), replace, lambda: write_status(run_dir, state="finished"))
    assert launch("r", "-f")[1] == "a long first line\ncut\nreplaced, and longer than the one before\n"


def test_follow_waits_for_a_rank(run_dir, launch, meanwhile):
    write(run_dir, 0, "zero\n", 1)
    write_status(run_dir, state="running", host="another-machine")
    meanwhile(lambda: write(run_dir, 1, "one\n", 1), lambda: write_status(run_dir, state="finished"))
    code, out, err = launch("r", "-f", "--rank", "1")
    assert (code, out) == (0, "one\n")
    assert err.startswith("no log of rank 1 of attempt 1: there are 0; waiting for it\n")


def test_batch_script(run_dir, launch, meanwhile):
    files = run_dir / "slurm"
    for number, name in enumerate(["4_0", "5_0"]):
        (files / f"batch-{name}_log.out").write_text(f"output of {name}\n")
        (files / f"batch-{name}_log.err").write_text(f"errors of {name}\n" * number)
        time.sleep(0.02)
    write_status(run_dir, state="finished")
    assert launch("r", "--batch") == (0, "output of 5_0\nerrors of 5_0\n", "")
    assert launch("r", "--batch", "-f") == (0, "output of 5_0\n", "")
    assert launch("r", "--batch", "--attempt", "1")[0] == 2
    assert launch("r", "--batch", "--rank", "1")[0] == 2


def test_unknown_run(run_dir, launch):
    code, out, err = launch("rr")
    assert (code, out) == (2, "")
    assert "did you mean r?" in err
    assert launch(str(run_dir), "--root", "elsewhere")[0] == 0


def test_a_real_follower_shows_a_line_at_once_and_ends_by_ctrl_c(run_dir):
    write(run_dir, 0, "one\n", 1)
    write_status(run_dir, state="running", host="another-machine")
    command = [sys.executable, "-m", "launch", "logs", str(run_dir), "-f"]
    follower = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    watchdog = threading.Timer(30, follower.kill)
    watchdog.start()
    try:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "one\n"
        write(run_dir, 0, "two\n", 1)
        assert follower.stdout.readline() == "two\n"
        follower.send_signal(signal.SIGINT)
        assert follower.wait() == 130
    finally:
        watchdog.cancel()
        follower.kill()
        follower.wait()
