"""What the jobs of one run order of several Slurms, by commands that stand for Slurm's."""

from __future__ import annotations

import base64
import errno
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch.runs.job_record import active_jobs
from launch.runs.requests import Place, make_requests
from recipes.load import load
from resnet.rundir.attempts import end_file
from slurm import race
from slurm.batch import Job
from slurm.claim import follow, newest_claim
from slurm.ends import End
from slurm.profile import Profile
from slurm.race import TOKEN, Race, enter, take
from slurm.requests import KEEP_ENVIRONMENT, SENT_WITH, all_sent, arrive, cancel_waiting, send_again, sent_with
from slurm.requeue import requeue

SLURM = """#!/usr/bin/env python3
import json, os, sys, time
folder = os.environ.get("SLURM_CONF")
if not folder:
    sys.exit("no cluster")
with open(f"{folder}/orders", "a") as orders:
    orders.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
state = json.load(open(f"{folder}/state.json"))
time.sleep(state.get("pause", 0))
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
if name == "sbatch":
    json.dump(dict(os.environ), open(f"{folder}/environment.json", "w"))
    time.sleep(state.get("sbatch_pause", 0))
    print(state["next"])
elif words[:2] == ["show", "config"]:
    print(f"ClusterName             = same\\nSlurmctldHost[0]        = {state['host']}\\nSlurmctldPort = 6817")
elif words[:2] == ["show", "job"]:
    job = state["jobs"].get(words[-1])
    if job is None:
        sys.exit("slurm_load_jobs error: Invalid job id specified")
    print(f"JobId={words[-1]} JobState={job[0]} Command={job[1]}/x.sh WorkDir=/")
elif name == "squeue":
    for job_id, (known, _) in state["jobs"].items():
        print(f"{job_id}|{known}|N/A|1:00|||run")
"""


class Fake:
    """A Slurm that answers by a file, and keeps what it was told."""

    def __init__(self, folder: Path, **state) -> None:
        self.folder = folder
        folder.mkdir()
        self.state = {"host": folder.name, "jobs": {}, "next": 9, **state}
        self.set()

    def set(self, **state) -> None:
        self.state |= state
        (self.folder / "state.json").write_text(json.dumps(self.state))

    @property
    def orders(self) -> list[list[str]]:
        file = self.folder / "orders"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def orders_of(self, command: str) -> list[list[str]]:
        return [words for words in self.orders if words[0] == command]


class Places:
    """A run that waits on two clusters."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        self.slurms = {name: Fake(folder / name) for name in ("one", "two")}
        (self.run / "slurm").mkdir(parents=True)
        (self.run / "slurm" / TOKEN).write_text("t")
        inode = (self.run / "slurm" / TOKEN).stat().st_ino
        self.claims = {name: {"name": name, "token": "t", "inode": inode, "cluster": name} for name in self.slurms}
        for name, slurm in self.slurms.items():
            place = self.place(name)
            place.mkdir()
            identity = f"ClusterName=same, SlurmctldHost[0]={name}, SlurmctldPort=6817"
            self.record = {"client": {"SLURM_CONF": str(slurm.folder)}, "request": name, "identity": identity}
            self.record |= {"name": "run", "cluster": name, "profile": {}, "nodes": 1, "ranks": 1, "gpus_per_node": 0}
            self.record |= {"snapshot": "", "folder": "", "command": "", "submitted": 1.0, "job_id": "1"}
            (place / "job.json").write_text(json.dumps(self.record))
            (place / "1_submission.sh").write_text("#!/bin/sh\n")
            (place / "1_submitted.pkl").write_text("pickle")
            (place / "run.jobs.json").write_text(json.dumps({"runs": [str(self.run)], "slice": None}))
        first = json.loads((self.place("one") / "job.json").read_text())
        (self.run / "slurm" / "job.json").write_text(json.dumps({**first, "requests": list(self.slurms)}))

    def place(self, name: str) -> Path:
        return self.run / "slurm" / name

    def set(self, name: str, **states: str) -> None:
        """States of a cluster's jobs, by id (as j1)."""
        jobs = {job_id[1:]: (state, str(self.place(name))) for job_id, state in states.items()}
        self.slurms[name].set(jobs=jobs)

    def job_id(self, name: str) -> str:
        return json.loads((self.place(name) / "job.json").read_text())["job_id"]

    def sent(self, *names: str):
        return [one for one in all_sent(self.run) if one.name in names]

    def own(self, name: str) -> dict:
        return {"request": name, "job_id": "1", "restart": 0, "cluster": name, "name": "run"}


@pytest.fixture
def places(tmp_path, monkeypatch) -> Places:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("sbatch", "scontrol", "scancel", "squeue"):
        (commands / name).write_text(SLURM)
        (commands / name).chmod(0o755)
    found = Places(tmp_path)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_CONF", str(found.slurms["one"].folder))
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.delenv(SENT_WITH, raising=False)
    return found


def soon(seconds: float = 20) -> float:
    return time.monotonic() + seconds


def wait(ready: Callable[[], object]) -> None:
    deadline = soon()
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_cluster_that_cannot_be_reached_from_anothers_nodes_is_refused():
    recipe = load(["recipe=quickstart", "device=cpu"]).recipe
    plain = Profile(gpus_per_node=0, cpus_per_rank=1)
    known = plain.model_copy(update={"client": {"SLURM_CONF": "/shared/two.conf"}})
    with pytest.raises(ValueError, match=r"cluster=one: from a node of two.*client: {SLURM_CONF"):
        make_requests(recipe, [Place("one", plain), Place("two", known)])
    # Two profiles of the one cluster of this shell.
    assert len(make_requests(recipe, [Place("low", plain), Place("high", plain)])) == 2
    assert len(make_requests(recipe, [Place("one", known), Place("two", known)])) == 2


def test_nothing_is_sent_to_a_cluster_that_is_not_the_requests(places):
    places.slurms["two"].set(host="another")
    [told] = send_again(places.sent("two"), {"PATH": os.environ["PATH"]}, soon())
    assert not told.waits
    assert "two was not sent again" in told.line
    assert "SlurmctldHost[0]=another" in told.line
    assert "`client` in its profile" in told.line
    assert not places.slurms["two"].orders_of("sbatch")
    assert places.job_id("two") == "1"


def test_another_cluster_gets_the_environment_of_the_submission(places, monkeypatch):
    given = {"PATH": os.environ["PATH"], "WANDB_API_KEY": "key", "TEXT": "two\nlines = ü", "SLURM_JOB_ID": "1"}
    lines = [*KEEP_ENVIRONMENT, "export NCCL_SOCKET_IFNAME=ib0 PATH=/of/a/module:$PATH", "exec python3 -c '"]
    lines[-1] += 'import os; os.environ.update(TMPDIR="/here"); import slurm.requests as r, json; '
    lines[-1] += "print(json.dumps([r.sent_with(), dict(os.environ)]))'"
    script = places.run / "script.sh"
    script.write_text("\n".join(["#!/bin/bash", *lines]))
    done = subprocess.run(
        ["bash", str(script)],
        env={**given, "PYTHONPATH": str(Path(race.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    sent, now = json.loads(done.stdout)
    assert (sent["TEXT"], sent["PATH"]) == (given["TEXT"], given["PATH"])
    assert "NCCL_SOCKET_IFNAME" in now
    assert not {"NCCL_SOCKET_IFNAME", "TMPDIR", SENT_WITH} & sent.keys()
    assert SENT_WITH not in now
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    [told] = send_again(places.sent("two"), {**sent, "TMPDIR": "/of/slurm"}, soon())
    assert told == (True, "two is job 9")
    reached = json.loads((places.slurms["two"].folder / "environment.json").read_text())
    assert reached["WANDB_API_KEY"] == "key"
    assert reached["SLURM_CONF"] == str(places.slurms["two"].folder)
    assert not {"NCCL_SOCKET_IFNAME", "TMPDIR", "SLURM_JOB_ID"} & reached.keys()


def test_an_environment_that_is_lost_is_that_of_the_job(monkeypatch):
    monkeypatch.setenv(SENT_WITH, "987654")
    assert sent_with() == dict(os.environ)


def test_an_environment_larger_than_a_pipe_stays_off_the_disk(tmp_path):
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(race.__file__).parents[1]), "TMPDIR": str(tmp_path)}
    given |= {f"NAME_{number}": "x" * 1000 for number in range(300)}
    code = "import os, slurm.requests as r; print(os.readlink('/proc/self/fd/9'), len(r.sent_with()))"
    lines = [*KEEP_ENVIRONMENT, f'exec python3 -c "{code}"']
    script = tmp_path / "script.sh"
    script.write_text("\n".join(lines))
    done = subprocess.run(["bash", str(script)], env=given, capture_output=True, text=True, check=True)
    place, count = done.stdout.split()
    assert place.startswith("pipe:")
    assert int(count) >= 303


def test_an_environment_larger_than_a_pipe_is_read_whole(monkeypatch, tmp_path):
    told = {f"NAME_{number}": "x" * 1000 for number in range(300)}
    file = tmp_path / "environment"
    file.write_bytes(base64.b64encode("\0".join(f"{name}={value}" for name, value in told.items()).encode()) + b"\n")
    monkeypatch.setenv(SENT_WITH, str(os.open(file, os.O_RDONLY)))
    assert sent_with() == told


def ending(run: Path, own: Race, left: float | None = None) -> Any:
    """A job on its way back to the queue."""
    clock, log = SimpleNamespace(left=lambda: left), SimpleNamespace(slurms_word=lambda: None)
    nodes = SimpleNamespace(left_out={})
    told = {"nodes": nodes, "jobs": {}, "job_id": "1", "in_haste": False}
    return SimpleNamespace(run_dir=run, race=own, clock=clock, log=log, **told)


@pytest.fixture
def masked():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


STOPPED = End("stopped", "signal USR2")


@pytest.mark.usefixtures("masked")
def test_a_full_disk_does_not_keep_a_job_from_the_queue(places, monkeypatch, capfd):
    own = enter(places.run, places.claims["one"])
    assert isinstance(own, Race)
    monkeypatch.setattr(race, "follow", full)
    monkeypatch.setattr("slurm.requests.write_atomic", full)
    monkeypatch.setattr("resnet.rundir.status.write_atomic", full)
    assert requeue(ending(places.run, own), "walltime", STOPPED) == 0
    assert ["scontrol", "requeue", "1"] in places.slurms["one"].orders
    told = capfd.readouterr().err
    assert "the claim of run could not be changed" in told
    assert "two was not sent again: [Errno 28] No space left" in told


def test_a_full_disk_does_not_fail_a_finished_run(places, monkeypatch):
    own = enter(places.run, places.claims["one"])
    assert isinstance(own, Race)
    monkeypatch.setattr(race, "follow", full)
    own.end()


def test_a_job_that_cannot_claim_for_want_of_space_says_so(places, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(race, "follow", full)
        assert enter(places.run, places.claims["one"]) == 1
    assert "run cannot be claimed: [Errno 28]" in capsys.readouterr().err
    status = json.loads((places.run / "status.json").read_text())
    assert (status["state"], status["failure"]) == ("failed", "disk")
    # Another job's run is not told to have failed.
    follow(places.run, None, places.own("two"))
    (places.run / "status.json").write_text('{"state": "running"}')
    places.set("two", j1="CANCELLED")
    monkeypatch.setattr(race, "follow", full)
    assert enter(places.run, places.claims["one"]) == 1
    assert json.loads((places.run / "status.json").read_text())["state"] == "running"


def test_a_job_whose_sender_was_not_told_of_it_finds_its_files(places, monkeypatch):
    places.slurms["two"].set(sbatch_pause=5, next=7)
    monkeypatch.setattr("slurm.requests.SEND_SECONDS", 2.0)
    [told] = send_again(places.sent("two"), {"PATH": os.environ["PATH"]}, soon())
    assert not told.waits
    assert "should Slurm have the job, it joins in" in told.line
    assert not (places.place("two") / "7_submitted.pkl").exists()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    own = enter(places.run, places.claims["two"])
    assert isinstance(own, Race)
    assert (places.place("two") / "7_submitted.pkl").read_text() == "pickle"
    assert (places.place("two") / "7_submission.sh").exists()
    assert places.job_id("two") == "7"
    own.end()


def test_one_that_was_sent_in_the_place_of_a_job_that_starts_is_cancelled(places):
    places.set("two", j1="PENDING")
    arrive(places.run, "two", "7")
    assert places.slurms["two"].orders_of("scancel") == [["scancel", "--state=PENDING", "1"]]
    assert places.job_id("two") == "7"
    arrive(places.run, "two", "7")
    assert len(places.slurms["two"].orders_of("scancel")) == 1


def test_a_run_that_is_sent_again_while_a_job_waits_for_its_claim_is_not_claimed(places, monkeypatch, capsys):
    follow(places.run, None, places.own("one"))

    def gone(*_) -> bool:
        (places.run / "slurm" / TOKEN).write_text("of a later submission")
        return True

    monkeypatch.setattr(race, "is_gone", gone)
    assert enter(places.run, places.claims["two"]) == 0
    assert "was sent again since" in capsys.readouterr().err
    newest = newest_claim(places.run)
    assert newest
    assert newest.holder is None
    assert newest.over is None


def test_a_job_that_waits_for_a_dead_holder_counts_as_active(places):
    follow(places.run, None, places.own("one"))
    places.set("one", j1="FAILED")
    places.set("two", j1="RUNNING")
    assert [(one.job.cluster, one.state) for one in active_jobs(places.run)] == [("two", "RUNNING")]
    places.set("one", j1="RUNNING")
    assert [one.job.cluster for one in active_jobs(places.run)] == ["one"]
    follow(places.run, newest_claim(places.run), {**places.own("one"), "over": "finished"})
    places.set("one", j1="COMPLETED")
    assert active_jobs(places.run) == []


@pytest.mark.parametrize(
    ("state", "left", "orders"),
    [
        ("PENDING", [], 1),
        ("RUNNING", ["two"], 0),
        ("COMPLETING", ["two"], 0),
        ("CANCELLED", [], 0),
        ("COMPLETED", [], 0),
        (None, ["two"], 0),
    ],
)
def test_what_may_yet_wait_is_cancelled_later(places, state, left, orders):
    places.set("two", **({"j1": state} if state else {}))
    assert [one.name for one in cancel_waiting(places.sent("two"))] == left
    assert len(places.slurms["two"].orders_of("scancel")) == orders


def taken_over(places, monkeypatch) -> Race:
    """By "two" from "one", which waits again once it was asked for."""
    places.set("one", j1="COMPLETING")
    monkeypatch.setenv("SLURM_CONF", str(places.slurms["two"].folder))
    own = enter(places.run, places.claims["two"])
    assert isinstance(own, Race)
    wait(lambda: places.slurms["one"].orders)
    places.set("one", j1="PENDING")
    return own


def test_the_winner_cancels_the_one_that_let_go_once_it_waits_again(places, monkeypatch):
    monkeypatch.setattr(race, "CANCEL_AGAIN_SECONDS", (0.5, 60.0))
    own = taken_over(places, monkeypatch)
    wait(lambda: places.slurms["one"].orders_of("scancel"))
    own.end()


def test_a_winner_that_is_soon_through_cancels_what_waits_again_at_its_end(places, monkeypatch):
    own = taken_over(places, monkeypatch)
    (places.run / "status.json").write_text('{"state": "finished"}')
    own.end()
    assert places.slurms["one"].orders_of("scancel") == [["scancel", "--state=PENDING", "1"]]


@pytest.mark.parametrize(
    ("state", "sent"),
    [("PENDING", False), ("RUNNING", False), ("COMPLETING", False), ("CANCELLED", True), (None, True)],
)
def test_only_what_is_over_is_sent_again(places, state, sent):
    places.set("two", **({"j1": state} if state else {}))
    [told] = send_again(places.sent("two"), {"PATH": os.environ["PATH"]}, soon())
    assert len(places.slurms["two"].orders_of("sbatch")) == sent
    assert places.job_id("two") == ("9" if sent else "1")
    assert told.waits == (sent or state == "PENDING")


def test_a_job_of_the_own_request_that_is_not_this_one_is_cancelled_too(places):
    own = enter(places.run, places.claims["one"])
    assert isinstance(own, Race)
    assert [one.name for one in own._others()] == ["two"]
    (places.place("one") / "job.json").write_text(json.dumps({**places.record, "job_id": "5"}))
    assert [(one.name, one.job_id) for one in own._others()] == [("one", "5"), ("two", "1")]
    own.end()


def test_sending_again_keeps_its_time_and_says_what_it_left_out(places):
    for slurm in places.slurms.values():
        slurm.set(pause=30)
    begin = time.monotonic()
    told = send_again(places.sent("one", "two"), {"PATH": os.environ["PATH"]}, soon(1))
    assert time.monotonic() - begin < 3
    assert [one.waits for one in told] == [False, False]
    assert [one.line.partition(":")[0] for one in told] == ["one was not sent again", "two was not sent again"]


@pytest.mark.usefixtures("masked")
def test_a_controller_that_does_not_answer_does_not_keep_a_job_from_the_queue(places, monkeypatch, capfd):
    monkeypatch.setattr(race, "SEND_AGAIN_SECONDS", 4.0)
    own = enter(places.run, places.claims["one"])
    assert isinstance(own, Race)
    wait(lambda: places.slurms["two"].orders)
    places.slurms["two"].set(pause=30)
    asked = threading.Thread(target=requeue, args=(ending(places.run, own, left=15.0), "walltime", STOPPED))
    begin = time.monotonic()
    asked.start()
    wait(lambda: ["scontrol", "requeue", "1"] in places.slurms["one"].orders)
    assert time.monotonic() - begin < 6
    asked.join()
    assert "two was not sent again" in capfd.readouterr().err


@pytest.mark.usefixtures("masked")
def test_a_run_that_waits_elsewhere_is_not_told_to_have_stopped(places, monkeypatch, capfd):
    own = enter(places.run, places.claims["one"])
    assert isinstance(own, Race)
    monkeypatch.setattr("slurm.requeue.order", lambda *_: "Requested operation is presently disabled")
    assert requeue(ending(places.run, own), "walltime", STOPPED) == 0
    assert "the run waits elsewhere" in capfd.readouterr().err
    assert json.loads((places.run / "status.json").read_text())["state"] == "queued"


@pytest.mark.usefixtures("masked")
def test_a_run_that_was_taken_over_is_not_sent_to_the_queue(places):
    own = enter(places.run, places.claims["one"])
    assert isinstance(own, Race)
    assert follow(places.run, own.claim, places.own("two"))
    assert requeue(ending(places.run, own), "walltime", STOPPED) == 0
    assert not places.slurms["two"].orders_of("sbatch")
    assert ["scontrol", "requeue", "1"] not in places.slurms["one"].orders


@pytest.mark.parametrize(
    ("status", "over"),
    [
        ({"state": "finished"}, "finished"),
        ({"state": "failed", "failure": "nan"}, "failed"),
        ({"state": "stopped"}, "stopped"),
        ({"state": "running"}, None),
        ({"state": "failed", "failure": "lease"}, None),
        ({}, None),
    ],
)
def test_a_run_that_another_process_trains_is_not_over(places, status, over):
    own = enter(places.run, places.claims["one"])
    assert isinstance(own, Race)
    (places.run / "status.json").write_text(json.dumps(status))
    own.end()
    newest = newest_claim(places.run)
    assert newest
    assert newest.over == over
    assert newest.number == 2
    assert newest.holder is None


def test_a_job_that_lost_its_run_is_told_again_and_again(places, monkeypatch):
    monkeypatch.setattr(race.claims, "BEAT_SECONDS", 0.1)
    own = enter(places.run, places.claims["one"])
    assert isinstance(own, Race)
    job = Job.__new__(Job)
    job.run_dir, job.race, job.told, job.bigger, job.stop_asked = places.run, own, None, None, None
    job.jobs, job.clock = {}, SimpleNamespace(left=lambda: None, limit=None)  # pyright: ignore
    assert job.must_end() is None
    assert job.why_to_stop() is None
    assert follow(places.run, own.claim, places.own("two"))
    wait(lambda: own.lost)
    assert job.must_end() == job.why_to_stop() == "taken over"
    end_file(places.run, "cancelled").touch()
    assert job.must_end() == "cancelled"


def test_a_slice_that_is_sent_again_is_as_long_as_is_worth_having(places):
    jobs = {"runs": [str(places.run)], "slice": {"limit": 600}, "nodes": 1, "signal_lead": 60}
    (places.place("two") / "run.jobs.json").write_text(json.dumps(jobs))
    attempt = {"attempt": 1, "start": 0.0, "nodes": ["n"], "step": 0}
    end = {"attempt": 1, "end": 7200.0, "outcome": "killed", "cause": "walltime", "step": 0, "stop_s": 100.0}
    (places.run / "slurm" / "attempts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (attempt, end)))
    send_again(places.sent("two"), {"PATH": os.environ["PATH"]}, soon())
    [order] = places.slurms["two"].orders_of("sbatch")
    assert order[2] == "--time=600"
    # Starting alone took two hours.
    assert int(order[3].partition("--time-min=")[2]) > 120


def test_take_asks_no_more_than_every_few_seconds(places, monkeypatch):
    monkeypatch.setattr(race, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(race.claims, "STALE_SECONDS", 1.0)
    follow(places.run, None, places.own("one"))
    places.set("one", j1="SUSPENDED")
    # It goes on, silent as it is.
    assert take(places.run, places.own("two")) is None
    assert len(places.slurms["one"].orders) == 1
    # Of a dead node Slurm says so for minutes.
    places.set("one", j1="RUNNING")
    assert take(places.run, places.own("two"))


@pytest.mark.usefixtures("masked")
@pytest.mark.parametrize("after", [{"over": "finished"}, {"free": "two"}])
def test_what_another_job_has_made_of_the_run_since_stays(places, monkeypatch, after):
    """Where Slurm at last refuses to requeue the one that let go of it."""
    own = enter(places.run, places.claims["one"])
    assert isinstance(own, Race)
    job, tokens = ending(places.run, own), json.dumps({"name": "run", "state": "finished", "step": 9})

    def refuse(*_) -> str:
        free = newest_claim(places.run)
        taken = follow(places.run, free, places.own("two"))
        assert follow(places.run, taken, {**places.own("two"), **after} if "over" in after else after)
        (places.run / "status.json").write_text(tokens)
        return "Access/permission denied"

    monkeypatch.setattr("slurm.requeue.order", refuse)
    monkeypatch.setattr(own, "send_others", lambda: False)
    assert requeue(job, "walltime", STOPPED) == 0
    assert (places.run / "status.json").read_text() == tokens


def test_a_record_that_is_damaged_does_not_keep_the_claim(places, capsys):
    (places.place("two") / "job.json").write_text("{")
    assert enter(places.run, places.claims["one"]) == 1
    claim = newest_claim(places.run)
    assert claim
    assert claim.holder is None
    assert "run cannot be claimed" in capsys.readouterr().err
