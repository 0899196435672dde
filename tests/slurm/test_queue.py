"""What Slurm's clients say, and what is made of it."""

from __future__ import annotations

import shlex
import subprocess
import time

import pytest

from slurm import control, testcluster
from slurm.queue import IDS_PER_CALL, Job, accounted, queued
from tests.slurm_helpers import need_slurm


@pytest.fixture
def client(tmp_path, monkeypatch):
    """Make a client of Slurm that gives an answer; returns what reads the command lines it got."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def make(name: str, answer: str = "", code: int = 0, error: str = "", first: str = ""):
        calls, script = tmp_path / f"{name}.calls", folder / name
        calls.touch()
        script.write_text(
            f'#!/bin/sh\necho "$@" >> {calls}\n{first}\nprintf %s {shlex.quote(answer)}\n'
            f"printf %s {shlex.quote(error)} >&2\nexit {code}\n"
        )
        script.chmod(0o755)
        return lambda: calls.read_text().splitlines()

    return make


def test_queued(client):
    calls = client(
        "squeue",
        "7|RUNNING|1700000000|1-02:03:04|n[1-2]|None|plain\n"
        '8_3|PENDING|N/A|UNLIMITED||Resources|a|name, "x" é \x1f\n'
        "9|PENDING|1700000100|10:00||Nodes required for job are DOWN|\n"
        "10|COMPLETING|1700000000|INVALID|n1|None|a name\nof two lines\n"
        "11|CANCELLED|1700000000|0:09|n1|None|x\n",
    )
    assert queued() == {
        "7": Job("RUNNING", None, 1_700_000_000, 93_784, "n[1-2]", "plain"),
        "8_3": Job("PENDING", "Resources", None, None, "", 'a|name, "x" é \x1f'),
        "9": Job("PENDING", "Nodes required for job are DOWN", 1_700_000_100, 600, "", ""),
        "10": Job("COMPLETING", None, 1_700_000_000, None, "n1", "a name"),
        "11": Job("CANCELLED", None, 1_700_000_000, 9, "n1", "x"),
    }
    assert len(calls()) == 1


def test_no_slurm_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert queued() is None
    assert accounted(["1"]) == {}


def test_controller_that_is_down_or_hangs(client, monkeypatch):
    client("squeue", code=1, error="squeue: error: a\nsqueue: error: Unable to contact slurm controller\n")
    with pytest.raises(ValueError, match=r"^Slurm does not answer: squeue: Unable to contact slurm controller$"):
        queued()
    client("squeue", code=3)
    with pytest.raises(ValueError, match="squeue: exit code 3"):
        queued()
    client("squeue", first="exec sleep 60")
    monkeypatch.setattr(control, "TIMEOUT_SECONDS", 0.2)
    begin = time.monotonic()
    with pytest.raises(ValueError, match=r"squeue took more than 0\.2 s"):
        queued()
    assert time.monotonic() - begin < 10


def test_settings_of_the_user_do_not_change_the_answer(client, monkeypatch, tmp_path):
    for name in ("SQUEUE_PARTITION", "SQUEUE_STATES", "SACCT_FORMAT"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    client("squeue", first=f"env > {tmp_path}/environment")
    queued()
    lines = (tmp_path / "environment").read_text().splitlines()
    assert not [line for line in lines if line.startswith(("SQUEUE_", "SACCT_"))]
    assert "SLURM_TIME_FORMAT=%s" in lines


def test_accounted(client):
    calls = client(
        "sacct",
        "3|OUT_OF_MEMORY|1700000000|n1|a\n4_0|CANCELLED by 1000|1700000000|n2|b|c\n"
        "4_[1-3,7,10-20:5%9]|CANCELLED by 1000|Unknown|None assigned|b\n5|FAILED|1700000000|n1|not asked for\n",
    )
    found = accounted(["3", "4_0", "4_2", "4_7", "4_15", "4_9", "4_16", "4_99", "not an id", "4"])
    user = Job("CANCELLED", None, None, None, "", "b")
    assert found == {
        "3": Job("OUT_OF_MEMORY", None, 1_700_000_000, None, "n1", "a"),
        "4_0": Job("CANCELLED", None, 1_700_000_000, None, "n2", "b|c"),
        **dict.fromkeys(["4_2", "4_7", "4_15"], user),
    }
    (call,) = calls()
    assert "--jobs=3,4" in call.split()


def test_no_accounting(client):
    client("sacct", code=1, error="Slurm accounting storage is disabled\n")
    assert accounted(["3"]) == {}


def test_thousands_of_ids_fit_in_few_command_lines(client):
    calls = client("sacct", "9000000007|COMPLETED|1700000000|n1|name\n")
    assert list(accounted(str(9_000_000_000 + number) for number in range(10_000))) == ["9000000007"]
    assert len(calls()) == 1
    accounted(str(number) for number in range(1, IDS_PER_CALL + 2))
    assert len(calls()) == 3
    accounted(f"77_{task}" for task in range(10_000))
    assert [call.split()[-1] for call in calls()[3:]] == ["--jobs=77"]


@pytest.mark.parametrize(
    ("state", "over", "failure"),
    [
        ("PENDING", False, None),
        ("RUNNING", False, None),
        ("COMPLETING", False, None),
        ("REQUEUE_HOLD", False, None),
        ("COMPLETED", True, None),
        ("OUT_OF_MEMORY", True, "oom"),
        ("TIMEOUT", True, "timeout"),
        ("NODE_FAIL", True, "node"),
        ("PREEMPTED", True, "preempted"),
        ("CANCELLED", True, "user"),
        ("FAILED", True, "crash"),
        ("SOMETHING_NEW", True, None),
    ],
)
def test_states(state, over, failure):
    job = Job(state)
    assert (job.over, job.failure if job.over else None) == (over, failure)


def test_the_real_one(tmp_path, monkeypatch):
    need_slurm()
    testcluster.up(tmp_path / "cluster")
    try:
        for name, value in testcluster.environment(tmp_path / "cluster").items():
            monkeypatch.setenv(name, value)
        held = _send("--hold", "-J", "odd|name, é", "--array=0-2")
        failing = _send("--wrap=exit 3")
        cancelled = _send("--wrap=sleep 100")
        requeued = _send("--wrap=sleep 100", "--requeue")
        _until(lambda: {(queued() or {})[job].state for job in (cancelled, requeued)} == {"RUNNING"})
        _until(lambda: (queued() or {})[failing].state == "FAILED")
        subprocess.run(["scancel", cancelled], check=True)
        subprocess.run(["scontrol", "requeue", requeued], check=True)
        _until(lambda: (queued() or {})[requeued].state == "PENDING")
        jobs = queued()
        assert jobs is not None
        assert [jobs[f"{held}_{task}"].state for task in (0, 2)] == ["PENDING", "PENDING"]
        assert (jobs[f"{held}_2"].reason, jobs[f"{held}_2"].name) == ("JobHeldUser", "odd|name, é")
        assert abs((jobs[failing].start or 0) - time.time()) < 60
        assert jobs[failing].nodes in ("127.0.0.1", "127.0.0.2")
        subprocess.run(["scancel", held], check=True)
        ended = {cancelled, f"{held}_1"}
        wanted = [failing, cancelled, requeued, f"{held}_1", "4000"]
        _until(lambda: {job for job, known in accounted(wanted).items() if known.failure == "user"} == ended)
        known = accounted(wanted)
        assert known[failing].failure == "crash"
        assert "4000" not in known
        # Requeued, it has two records: the newest counts once it runs again, and ends.
        _until(lambda: (queued() or {})[requeued].state == "RUNNING", seconds=40)
        _until(lambda: accounted([requeued])[requeued].state == "RUNNING")
    finally:
        testcluster.down(tmp_path / "cluster")
    monkeypatch.setattr(control, "TIMEOUT_SECONDS", 2)
    with pytest.raises(ValueError, match="Slurm does not answer"):
        queued()


def _send(*options: str) -> str:
    script = [] if any(option.startswith("--wrap") for option in options) else ["--wrap=true"]
    command = ["sbatch", "--parsable", "--output=/dev/null", *options, *script]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _until(true, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)
