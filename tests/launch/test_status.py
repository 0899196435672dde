"""How runs are told to go."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import cli
from launch.commands import status
from launch.runs import asked as slurms_word
from launch.runs.state import effective, rows
from resnet.process.processes import pid_namespace
from resnet.rundir.find import remember_root
from resnet.rundir.state import Verdict
from slurm.queue import Job

NOW = 1_700_000_000.0
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    """Slurm must not be asked unless a test says what it answers."""

    def asked(*_):
        raise AssertionError("Slurm was asked")

    monkeypatch.setattr(slurms_word, "queued", asked)
    monkeypatch.setattr(slurms_word, "accounted", asked)


@pytest.fixture
def slurm(monkeypatch):
    """Say what squeue and sacct know; returns the questions they get."""

    def answer(queue=None, accounting=None, trouble=None, none=False):
        questions = []

        def queued(client=None):
            questions.append("squeue")
            if trouble:
                raise ValueError(trouble)
            return None if none else dict(queue or {})

        def accounted(job_ids, client=None):
            questions.append(sorted(job_ids))
            return {job_id: job for job_id, job in (accounting or {}).items() if job_id in questions[-1]}

        monkeypatch.setattr(slurms_word, "queued", queued)
        monkeypatch.setattr(slurms_word, "accounted", accounted)
        return questions

    return answer


@pytest.fixture
def launch(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*words):
        with pytest.raises(SystemExit) as left:
            cli.main(["status", *words])
        out, err = capsys.readouterr()
        return left.value.code, out, err

    return call


def make(root: Path, name: str, job: str | None = None, **fields) -> Path:
    run_dir = root / "runs" / name
    (run_dir / "slurm").mkdir(parents=True)
    (run_dir / "recipe.yaml").write_text("")
    fields = {"name": name, "updated": time.time() - 100, **fields}
    (run_dir / "status.json").write_text(json.dumps(fields))
    if job:
        record = {"job_id": job, "cluster": "local-test", "submitted": time.time() - 1000, "nodes": 2, "ranks": 4}
        (run_dir / "slurm" / "job.json").write_text(json.dumps(record))
    return run_dir


def verdict(state: str, job: Job | None = None, job_id: str | None = None, age: float = 100, **others) -> Verdict:
    names = ("trouble", "alive", "silent", "cancelled")
    told = {key: others.pop(key) for key in names if key in others}
    fields = {"state": state, "updated": NOW - age, "host": "n1", "pid": 77, **others}
    return effective(fields, job, job_id, now=NOW, **told)


# What is true of a run


@pytest.mark.parametrize(
    ("state", "told", "expected"),
    [
        ("running", {"alive": True}, ("running", None, None, False)),
        ("running", {"alive": None}, ("running", None, None, False)),
        ("running", {"alive": False}, ("failed", "killed", "process 77 is gone; the same command", True)),
        ("running", {"silent": 7200}, ("running", None, "no sign of life for 2h00m from n1", False)),
        ("running", {"silent": 500}, ("running", None, None, False)),
        ("queued", {}, ("queued", None, None, False)),
        ("stopped", {"reason": "signal SIGINT"}, ("stopped", None, "signal SIGINT", True)),
        ("failed", {"failure": "nan", "reason": "not finite"}, ("failed", "nan", "not finite", True)),
        ("finished", {"reason": "finished", "failure": "peer"}, ("finished", None, None, True)),
        ("odd", {}, ("unknown", None, "no status.json yet", False)),
    ],
)
def test_without_a_job(state, told, expected):
    _matches(verdict(state, **told), expected)


STARTED, BEFORE = NOW - 50, NOW - 500
"""Of a job that started after the status was written, and before."""


@pytest.mark.parametrize(
    ("state", "job", "told", "expected"),
    [
        # It waits.
        (
            "queued",
            Job("PENDING", "Resources", NOW + 3720),
            {},
            ("queued", None, "Resources, expected in 1h02m", False),
        ),
        ("queued", Job("PENDING", "Priority"), {}, ("queued", None, "Priority", False)),
        ("queued", Job("PENDING"), {}, ("queued", None, None, False)),
        (
            "queued",
            Job("PENDING", "BeginTime"),
            {"reason": "walltime: SIGUSR2"},
            ("queued", None, "requeued (walltime: SIGUSR2), BeginTime", False),
        ),
        ("running", Job("PENDING", "BeginTime"), {}, ("queued", None, "requeued, BeginTime", False)),
        ("running", Job("REQUEUE_HOLD", "JobHeldUser"), {}, ("queued", None, "requeued, JobHeldUser", False)),
        (
            "stopped",
            Job("PENDING"),
            {"reason": "signal SIGUSR2"},
            ("queued", None, "requeued (signal SIGUSR2)", False),
        ),
        ("failed", Job("PENDING"), {"failure": "peer", "reason": "lost"}, ("queued", None, "requeued (lost)", False)),
        (
            "queued",
            Job("PENDING", "Priority"),
            {"cancelled": True},
            ("queued", None, "being cancelled, Priority", False),
        ),
        # It has its nodes.
        ("queued", Job("RUNNING", start=STARTED), {}, ("running", None, "starting", False)),
        ("running", Job("RUNNING", start=STARTED), {}, ("running", None, "starting", False)),
        ("running", Job("RUNNING", start=BEFORE), {}, ("running", None, None, False)),
        ("running", Job("COMPLETING", start=BEFORE), {}, ("running", None, None, False)),
        ("running", Job("RUNNING", start=BEFORE), {"cancelled": True}, ("running", None, "being cancelled", False)),
        ("running", Job("RUNNING", start=BEFORE), {"silent": 7200}, ("running", None, "no sign of life for", False)),
        ("queued", Job("RUNNING", start=BEFORE), {"reason": "walltime"}, ("queued", None, "walltime", False)),
        ("stopped", Job("RUNNING", start=BEFORE), {"reason": "signal"}, ("stopped", None, "signal", False)),
        ("failed", Job("COMPLETING", start=BEFORE), {"failure": "oom"}, ("failed", "oom", None, False)),
        # It has ended without the run's word.
        ("running", Job("TIMEOUT"), {}, ("failed", "timeout", "Slurm ended job 5: TIMEOUT", True)),
        ("running", Job("NODE_FAIL"), {}, ("failed", "node", "Slurm ended job 5: NODE_FAIL", True)),
        ("running", Job("OUT_OF_MEMORY"), {}, ("failed", "oom", "Slurm ended job 5: OUT_OF_MEMORY", True)),
        ("running", Job("PREEMPTED"), {}, ("failed", "preempted", "Slurm ended job 5: PREEMPTED", True)),
        ("running", Job("FAILED"), {}, ("failed", "crash", "Slurm ended job 5: FAILED", True)),
        ("running", Job("COMPLETED"), {}, ("failed", "crash", "job 5 ended (COMPLETED), and its run did not", True)),
        ("queued", Job("CANCELLED"), {}, ("failed", "user", "Slurm ended job 5: CANCELLED", True)),
        ("queued", Job("CANCELLED"), {"age": 5}, ("queued", None, None, False)),
        # It has ended, and the run said how.
        (
            "stopped",
            Job("CANCELLED"),
            {"failure": "user", "reason": "cancelled"},
            ("stopped", "user", "cancelled", True),
        ),
        ("stopped", Job("TIMEOUT"), {"reason": "signal"}, ("stopped", "timeout", "signal", True)),
        ("stopped", Job("COMPLETED"), {"reason": "signal"}, ("stopped", None, "signal", True)),
        ("failed", Job("FAILED"), {"failure": "nan", "reason": "loss"}, ("failed", "nan", "loss", True)),
        ("failed", Job("OUT_OF_MEMORY"), {"failure": "nan", "reason": "loss"}, ("failed", "nan", "loss", True)),
        (
            "failed",
            Job("NODE_FAIL"),
            {"failure": "peer", "reason": "lost rank 3"},
            ("failed", "node", "Slurm ended job 5: NODE_FAIL; lost rank 3", True),
        ),
        ("failed", Job("FAILED"), {"failure": "peer", "reason": "lost"}, ("failed", "peer", "lost", True)),
        ("finished", Job("RUNNING"), {}, ("finished", None, None, True)),
        # Slurm has forgotten it.
        ("running", None, {}, ("failed", "gone", "job 5 is gone, and Slurm knows nothing of it", True)),
        ("running", None, {"cancelled": True}, ("failed", "user", "job 5 is gone", True)),
        ("queued", None, {}, ("failed", "gone", "job 5 is gone", True)),
        ("queued", None, {"age": 5}, ("queued", None, None, False)),
        ("stopped", None, {"reason": "signal"}, ("stopped", None, "signal", True)),
        ("failed", None, {"failure": "peer", "reason": "lost"}, ("failed", "peer", "lost", True)),
        # Slurm could not be asked.
        ("running", None, {"trouble": "no answer"}, ("running", None, "no answer", False)),
        ("queued", None, {"trouble": "no answer"}, ("queued", None, "no answer", False)),
        ("stopped", None, {"trouble": "no answer", "age": 5}, ("stopped", None, "no answer", False)),
        ("stopped", None, {"trouble": "no answer", "reason": "signal"}, ("stopped", None, "signal", True)),
        ("failed", None, {"trouble": "no answer", "failure": "nan"}, ("failed", "nan", "no answer", True)),
    ],
)
def test_with_a_job(state, job, told, expected):
    _matches(verdict(state, job, "5", **told), expected)


def _matches(found: Verdict, expected: tuple) -> None:
    state, failure, reason, over = expected
    assert (found.state, found.failure, found.over) == (state, failure, over)
    assert found.reason == reason if reason is None else (found.reason or "").startswith(reason)


# Rows


def test_slurm_is_asked_once_however_many_runs_there_are(tmp_path, slurm):
    runs = [make(tmp_path, f"r{n}", job=f"7_{n}", state="running" if n % 2 else "stopped") for n in range(20)]
    runs += [make(tmp_path, f"done{n}", job=f"8_{n}", state="finished") for n in range(5)]
    runs += [make(tmp_path, f"nan{n}", job=f"9_{n}", state="failed", failure="nan") for n in range(5)]
    runs += [make(tmp_path, "peer", job="10", state="failed", failure="peer")]
    runs += [make(tmp_path, f"cut{n}", job=f"11_{n}", state="stopped", reason="pruned") for n in range(5)]
    queue = {f"7_{n}": Job("RUNNING", None, 5.0, 60.0, "n1") for n in range(10)}
    questions = slurm(queue, {"7_11": Job("TIMEOUT"), "10": Job("NODE_FAIL")})
    found = {row["name"]: row for row in rows(runs)}
    assert questions == ["squeue", sorted([*(f"7_{n}" for n in range(10, 20)), "10"])]
    assert (found["r1"]["state"], found["r1"]["nodes"], found["r1"]["time_left_s"]) == ("running", "n1", 60)
    assert [found[name]["failure"] for name in ("r11", "r13", "nan0", "peer")] == ["timeout", "gone", "nan", "node"]
    assert found["r11"]["slurm_state"] == "TIMEOUT"
    assert list(found) == [run.name for run in runs]


def test_local_runs_need_no_slurm(tmp_path):
    here = {"state": "running", "host": socket.gethostname()}
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    runs = [
        make(tmp_path, "alive", **here, pid=os.getpid()),
        make(tmp_path, "dead", **here, pid=child.pid, pid_namespace=pid_namespace()),
        make(tmp_path, "in a container", **here, pid=child.pid, pid_namespace=f"{socket.gethostname()} pid:[1]"),
        make(tmp_path, "elsewhere", state="running", host="another-machine", pid=child.pid),
        make(tmp_path, "nonsense", **here, pid=10**30),
    ]
    assert [row["state"] for row in rows(runs)] == ["running", "failed", *["running"] * 3]
    assert [row["failure"] for row in rows(runs)] == [None, "killed", *[None] * 3]


def test_a_process_that_nobody_reaped_is_dead(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    run_dir = make(tmp_path, "zombie", state="running", host=socket.gethostname(), pid=child.pid)
    assert rows([run_dir])[0]["failure"] == "killed"
    child.wait()


def test_a_trainer_started_by_hand_in_a_job(tmp_path, slurm):
    run_dir = make(tmp_path, "r", state="running", job_id="5", host="n1", pid=1)
    slurm({"5": Job("RUNNING", start=5.0, name="bash")})
    assert rows([run_dir])[0]["state"] == "running"
    slurm({}, {"5": Job("TIMEOUT")})
    assert rows([run_dir])[0]["failure"] == "timeout"
    make(tmp_path, "s", state="stopped", job_id="5")
    assert rows([tmp_path / "runs" / "s"])[0]["over"]


def test_a_job_of_another_name_is_of_another_time(tmp_path, slurm):
    run_dir = make(tmp_path, "my run", job="5", state="running")
    slurm({"5": Job("RUNNING", start=5.0, name="my run")})
    assert rows([run_dir])[0]["state"] == "running"
    slurm({"5": Job("RUNNING", start=5.0, name="your run")}, {"5": Job("RUNNING", start=5.0, name="your_run")})
    assert rows([run_dir])[0]["failure"] == "gone"


def test_a_lease_is_a_sign_of_life(tmp_path, slurm):
    run_dir = make(tmp_path, "r", job="5", state="running", updated=time.time() - 7200, host="n1")
    slurm({"5": Job("RUNNING", start=5.0)})
    assert rows([run_dir])[0]["reason"].startswith("no sign of life for 2h00m from n1")
    (run_dir / "lease.json").write_text(json.dumps({"time": time.time() - 5}))
    assert rows([run_dir])[0]["reason"] is None


def test_a_run_that_ends_while_slurm_is_asked_has_not_failed(tmp_path, slurm, monkeypatch):
    run_dir = make(tmp_path, "r", job="5", state="running")
    slurm()

    def queued(client=None):
        (run_dir / "status.json").write_text(json.dumps({"state": "finished"}))
        return {"5": Job("COMPLETED")}

    monkeypatch.setattr(slurms_word, "queued", queued)
    assert rows([run_dir])[0]["state"] == "finished"


def test_slurm_that_does_not_answer_hides_nothing(tmp_path, slurm):
    runs = [make(tmp_path, "a", job="5", state="running", step=7), make(tmp_path, "b", state="finished")]
    slurm(trouble="Slurm does not answer: squeue: down")
    first, second = rows(runs)
    assert (first["state"], first["step"], first["reason"]) == ("running", 7, "Slurm does not answer: squeue: down")
    assert (second["state"], second["reason"]) == ("finished", None)
    slurm(none=True)
    assert rows(runs)[0]["reason"] == "no squeue on this machine to ask"


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"", b"null"])
def test_a_damaged_status_breaks_nothing(tmp_path, launch, content):
    make(tmp_path, "good", state="finished", step=3)
    bad = make(tmp_path, "bad", state="running")
    (bad / "status.json").write_bytes(content)
    code, out, err = launch()
    assert (code, err) == (0, "")
    assert "damaged" in next(line for line in out.splitlines() if line.startswith("bad "))
    assert "finished" in next(line for line in out.splitlines() if line.startswith("good "))
    assert launch("bad")[0] == 0


def test_fields_of_the_wrong_kind_are_left_out(tmp_path, launch):
    make(tmp_path, "a", state="running", step="x", loss=None, top1=True, eta_s=[1], last_checkpoint_time="now", pid="p")
    code, out, _ = launch("--json")
    (row,) = json.loads(out)
    assert (code, row["step"], row["top1"], row["eta_s"], row["last_checkpoint_age_s"]) == (0, None, None, None, None)
    assert launch()[0] == launch("a")[0] == 0


# The command


def test_json_has_what_is_promised(tmp_path, launch, slurm):
    figures = {"step": 40, "total_steps": 100, "percent": 40.0, "epoch": 4, "epochs": 10, "loss": 1.5, "top1": 55.5}
    figures |= {"images_per_second": 900.5, "eta_s": 65, "attempts": 2, "wandb_url": "https://w"}
    make(tmp_path, "r", job="5", state="running", last_checkpoint_time=time.time() - 30, **figures)
    slurm({"5": Job("RUNNING", start=5.0)})
    code, out, _ = launch("--json")
    (row,) = json.loads(out)
    assert code == 0
    assert {key: row[key] for key in figures} == figures
    assert (row["name"], row["state"], row["slurm_state"], row["job_id"]) == ("r", "running", "RUNNING", "5")
    assert (row["failure"], row["reason"]) == (None, None)
    assert 29 < row["last_checkpoint_age_s"] < 60
    assert Path(row["run_dir"]).samefile(tmp_path / "runs" / "r")


def test_table(tmp_path, launch, slurm):
    make(tmp_path, "old", state="finished", best=93.02, epoch=10, epochs=10, percent=100, updated=5)
    make(tmp_path, "new", state="finished", top1=94, updated=time.time())
    make(
        tmp_path,
        "broken",
        state="failed",
        failure="nan",
        reason="rank 1 on n2: not finite\n  more",
        images_per_second=9,
    )
    make(tmp_path, "paused", state="stopped", reason="signal SIGINT")
    make(tmp_path, "waits", job="6", state="queued")
    fields = {"epoch": 3.25, "epochs": 90, "percent": 3.6, "loss": 2.345678, "images_per_second": 2500.4}
    make(tmp_path, "runs", job="5", state="running", **fields, eta_s=3720, last_checkpoint_time=time.time() - 125)
    slurm({"5": Job("COMPLETING", start=5.0), "6": Job("PENDING", "Priority", time.time() + 600)})
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "file.txt").touch()
    code, out, _ = launch()
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines] == ["name", "runs", "waits", "broken", "paused", "new", "old"]
    assert lines[1].split() == ["runs", "running", "(completing)", "3.25/90", "4", "2.346", "2500", "1h02m", "2m05s"]
    assert lines[2].startswith("waits   queued ")
    assert lines[2].endswith("Priority, expected in 10m00s")
    assert lines[3].split() == ["broken", "failed", "nan:", "rank", "1", "on", "n2:", "not", "finite"]
    assert lines[6].split() == ["old", "finished", "10/10", "100", "93.02"]
    assert [line.split()[0] for line in launch("new", "runs")[1].splitlines()] == ["name", "runs", "new"]


@pytest.mark.parametrize("width", [30, 60, 80, 100, 140, 300])
def test_table_fits_the_terminal(tmp_path, width):
    name = "cifar10_resnet18_with_a_long_name-20260101-010203"
    figures = {"epoch": 3.25, "epochs": 90, "percent": 3.6, "loss": 2.34, "best": 5.1, "images_per_second": 2500.4}
    figures |= {"attempts": 3, "eta_s": 3720, "last_checkpoint_time": time.time() - 125}
    runs = [make(tmp_path, name, state="running", host="x", **figures)]
    runs += [make(tmp_path, "b", state="failed", failure="oom", reason="rank 1 on n2: " + "x" * 200)]
    lines = status.run_table(rows(runs), width)
    # On a very narrow one what is most needed is left, and the terminal wraps it.
    assert all(len(line) < max(width, 55) for line in lines)
    assert "running" in lines[1]
    assert "010203" in lines[1]
    assert "oom: rank" in lines[2]
    if width == 300:
        assert lines[0].split() == ["name", "state", "epoch", "%", "loss", "best", "img/s", "ETA", "saved", "tries"]
        assert name in lines[1]
    if width == 100:
        assert {"%", "best", "ETA"} <= set(lines[0].split())


def test_one_run_in_full(tmp_path, launch, slurm):
    fields = {"step": 40, "total_steps": 100, "percent": 40.0, "epoch": 4, "epochs": 10, "eta_s": 65, "attempts": 2}
    slow = "rank 1 on n2: 1.43 times the median (data)"
    run_dir = make(tmp_path, "r", job="5", state="running", wandb_url="https://w.example/r", slow_ranks=slow, **fields)
    (run_dir / "slurm" / "attempts.jsonl").write_text(
        '{"attempt": 1, "start": 1, "step": 0, "nodes": ["n1"]}\n'
        '{"attempt": 1, "end": 2, "outcome": "stopped", "cause": "preempted", "step": 20}\n{"attempt": 2, "step": 20}\n'
    )
    for attempt in (1, 2):
        (run_dir / "logs" / f"attempt-{attempt}").mkdir(parents=True)
        (run_dir / "logs" / f"attempt-{attempt}" / "rank-0.log").touch()
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints" / "latest").write_text("step-00000030\n")
    slurm({"5": Job("RUNNING", None, 5.0, 7200.0, "n[1-2]")})
    code, out, _ = launch("r")
    assert code == 0
    assert out.startswith("r: running\n")
    for expected in [
        "epoch 4/10, step 40/100 (40%), ETA 1m05s, updated 1m40s ago",
        "step-00000030",
        "2, number 1 stopped (preempted) at step 20",
        "5 running on n[1-2], time left 2h00m",
        "https://w.example/r",
        slow,
        "logs/attempt-2/rank-0.log",
        "launch logs r -f",
        "launch cancel r",
    ]:
        assert expected in out
    assert "retry" not in out


def test_one_failed_run_shows_the_log_of_the_rank_that_failed_first(tmp_path, launch, slurm):
    run_dir = make(tmp_path, "r 1", job="5", state="failed", failure="oom", reason="rank 3 on n2: no memory\n  tail")
    (run_dir / "logs" / "attempt-1").mkdir(parents=True)
    for rank in range(4):
        lines = "".join(f"line {n} of rank {rank}\n" for n in range(50))
        (run_dir / "logs" / "attempt-1" / f"rank-{rank}.log").write_text(lines)
        record = {"rank": rank, "time": 100 - rank, "host": "n2", "step": 3, "reason": "no memory"}
        record["own_fault"] = rank == 2
        (run_dir / "logs" / f"failure-{rank}.json").write_text(json.dumps(record))
    slurm({"5": Job("FAILED")})
    out = launch("r 1")[1]
    assert "oom: rank 3 on n2: no memory\n" in out
    assert "attempt-1/rank-2.log\n" in out
    assert "    line 49 of rank 2\n" in out
    assert "line 39 of" not in out
    assert "launch retry 'r 1'" in out
    assert "cancel" not in out


def test_a_local_run_is_retried_too(tmp_path, launch):
    make(tmp_path, "r", state="stopped", reason="signal SIGINT")
    assert "launch retry r\n" in launch("r")[1]
    out = launch("r", "--root", str(tmp_path / "runs"))[1]
    assert f"launch retry {tmp_path}/runs/r\n" in out


def test_mistakes(tmp_path, launch):
    assert launch() == (0, "no runs in runs\n", "")
    make(tmp_path, "cifar-7", state="finished")
    code, out, err = launch("cifar7")
    assert (code, out) == (2, "")
    assert "did you mean cifar-7?" in err
    code, _, err = launch("--root", "run")
    assert (code, err) == (2, "launch status: --root run: No such file or directory\n")
    assert launch("--watch", "--json")[0] == 2


def test_a_run_that_has_no_recipe_yet_is_found(tmp_path, launch):
    run_dir = make(tmp_path, "r", state="queued")
    (run_dir / "recipe.yaml").unlink()
    assert launch("r")[0] == 0
    (run_dir / "status.json").unlink()
    (run_dir / "recipe.yaml").touch()
    assert "r: unknown" in launch("r")[1]
    assert launch("runs/r")[0] == 0


def test_watch_draws_until_all_is_over(tmp_path, launch, monkeypatch):
    run_dir = make(tmp_path, "r", state="running", host="x", step=1)
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        (run_dir / "status.json").write_text(json.dumps({"state": "running" if len(pauses) < 3 else "finished"}))

    monkeypatch.setattr(status.time, "sleep", sleep)
    code, out, _ = launch("--watch")
    assert (code, pauses) == (0, [2, 2, 2])
    assert out.count("running") == 3
    assert out.count("finished") == 1
    assert "\033" not in out


def test_watch_does_not_load_the_controller(tmp_path, launch, monkeypatch, slurm):
    make(tmp_path, "r", job="5", state="running")
    slurm({"5": Job("RUNNING", start=5.0)})
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        raise KeyboardInterrupt

    monkeypatch.setattr(status.time, "sleep", sleep)
    assert launch("--watch")[0] == 0
    assert pauses == [10]


def test_watch_asks_a_slow_controller_less_often(tmp_path, launch, monkeypatch):
    make(tmp_path, "r", job="5", state="running")
    clock, pauses = [0.0], []

    def queued(client=None):
        clock[0] += 8 if not pauses else 600
        return {"5": Job("RUNNING", start=5.0)}

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(slurms_word, "queued", queued)
    monkeypatch.setattr(status.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(status.time, "sleep", sleep)
    assert "Slurm is slow (8.0 s): the next look is in 1m20s" in launch("--watch")[1]
    assert pauses == [80, 300]


def test_a_terminal_is_shown_some_runs_of_each_state(tmp_path, launch, monkeypatch):
    for number in range(25):
        make(tmp_path, f"done-{number}", state="finished", updated=1000 + number)
    make(tmp_path, "broken", state="failed", failure="nan", reason="not finite")
    assert len(launch()[1].splitlines()) == 27, "a pipe is given all"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    lines = launch()[1].splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["name", "broken", "done-24"]
    assert lines[-2:] == [lines[-2], "... and 5 finished more: --all, or --filter state=STATE"]
    assert lines[-2].split()[0] == "done-5"
    for words in (["--all"], ["--filter", "state=finished"]):
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        assert "done-0" in launch(*words)[1]


def test_on_a_terminal_watch_clears_it(tmp_path):
    make(tmp_path, "r", state="finished")
    parent, child = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "launch", "status", "--watch", "--root", str(tmp_path / "runs")],
        cwd=ROOT,
        stdout=child,
        timeout=30,
    )
    os.close(child)
    written = io.BytesIO()
    with contextlib.suppress(OSError):
        while part := os.read(parent, 4096):
            written.write(part)
    assert done.returncode == 0
    assert written.getvalue().startswith(b"\033[H\033[2J")
    assert b"finished" in written.getvalue()


def test_imports_nothing_that_takes_long():
    code = "import sys, launch.commands.status, launch.commands.logs\n"
    code += "print([n for n in ('pydantic', 'yaml', 'torch') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_runs_are_told_apart_sorted_and_filtered(tmp_path, launch):
    lrs = {"a": 0.1, "b": 0.4, "c": 0.2}
    for number, (name, lr) in enumerate(lrs.items()):
        fields = {"recipe": "quickstart", "differs": {"optimizer.lr": lr, "epochs": 5}}
        make(tmp_path, name, state="finished", best=50.0 + lr, updated=number, **fields)
    make(tmp_path, "old", state="failed", best=None, updated=9)
    out = launch()[1].splitlines()
    assert [line.split()[0] for line in out[1:]] == ["old", "c", "b", "a"]
    assert "quickstart lr=0.4 epochs=5" in out[3]
    assert "50.4" in out[3]

    def names(*words: str) -> list[str]:
        return [line.split()[0] for line in launch(*words)[1].splitlines()[1:]]

    assert names("--sort", "best") == ["b", "c", "a", "old"]
    assert names("--sort", "name", "--reverse") == ["old", "c", "b", "a"]
    assert names("--filter", "optimizer.lr=4e-1") == ["b"]
    assert names("--filter", "state=finished", "--filter", "LR=0.2") == []
    assert names("--filter", "lr=0.2") == []
    assert names("--filter", "QUICK") == ["c", "b", "a"]
    code, _, err = launch("--sort", "bets")
    assert (code, "did you mean best" in err) == (2, True)
    row = json.loads(launch("--json", "--filter", "name=b")[1])[0]
    assert (row["recipe"], row["differs"]["optimizer.lr"]) == ("quickstart lr=0.4 epochs=5", 0.4)


def test_runs_under_a_profiles_own_folder_are_found(tmp_path, launch, monkeypatch):
    """Runs that were sent by a profile with `run_root`, from this machine or another."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    far = make(tmp_path / "far", "sent", state="finished", best=1.0).parent
    profiles = tmp_path / "config" / "resnet-launch" / "clusters"
    profiles.mkdir(parents=True)
    (profiles / "mine.yaml").write_text(f"run_root: {far}\n")
    make(tmp_path, "near", state="finished")
    assert "sent" not in launch()[1]
    assert launch("sent")[0] == 2
    remember_root(far)
    assert "sent" in launch()[1]
    assert launch("sent")[1].startswith("sent: finished")
    assert "sent" not in launch("--root", "runs/.")[1]
    (tmp_path / "state" / "resnet-launch" / "roots").unlink()
    (far / "sent" / "slurm").mkdir(exist_ok=True)
    (far / "sent" / "slurm" / "job.json").write_text(json.dumps({"job_id": "1", "cluster": "mine"}))
    assert [line.split()[0] for line in launch("cluster=mine")[1].splitlines()] == ["name", "sent"]
