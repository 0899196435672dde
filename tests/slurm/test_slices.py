"""How long slices are, when their ranks are told to save, and what is asked of Slurm for the next."""

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet.rundir.attempts import end_file, read_attempts
from resnet.rundir.files import to_json
from slurm import attend, requeue, slicing
from slurm.batch import Job
from slurm.ends import End
from slurm.measured import left_seconds, paces, queue_seconds, took
from slurm.slices import GAP_MOST, LAST_SECONDS, SHARE, UNKNOWN_MINUTES, UNLIMITED_MINUTES, Took, hole, slice_of
from tests.helpers import status

minutes = st.integers(1, 10_000)
seconds = st.floats(0, 100_000)


@given(
    limit=st.none() | minutes,
    need=st.none() | seconds,
    start=st.none() | seconds,
    stop=st.none() | seconds,
    vain=st.none() | seconds,
    lead=st.integers(1, 65_535),
    free=st.none() | st.integers(0, 10_000),
    given=st.booleans(),
)
def test_a_slice_fits_together(limit, need, start, stop, vain, lead, free, given):
    """Whatever is known."""
    took, least_lead = Took(start, stop, vain), lead if given else 0
    found = slice_of(limit, need, took, lead, free, least_lead)
    without = slice_of(limit, need, took, lead, None, least_lead)
    assert 1 <= found.least <= found.most <= (limit or UNLIMITED_MINUTES)
    assert 1 <= found.lead <= 30 * found.least
    assert without.least <= found.least <= GAP_MOST * without.least
    if free is not None and found.least > free:
        # For its own sake: no shorter one is worth starting.
        assert found.least == without.least
    if vain is not None and found.least < found.most:
        assert 60 * found.least > vain
    if None not in (start, stop) and found.least < found.most:
        assert start + stop <= SHARE * 60 * found.least + 1e-6
    if stop is not None and found.lead < 30 * found.least:
        assert found.lead >= max(60, stop, least_lead) + (0 if least_lead else LAST_SECONDS)
    if need is not None and found.most < (limit or UNLIMITED_MINUTES):
        assert 60 * found.most - found.lead >= need


def test_what_is_not_known_has_defaults():
    assert slice_of(None, None, Took(), 120)[:3] == (UNKNOWN_MINUTES, UNLIMITED_MINUTES, 120)
    assert slice_of(20, None, Took(), 120)[:3] == (20, 20, 120)
    # A minute to start and half of one to save are a twentieth of half an hour.
    assert slice_of(600, None, Took(60, 30), 120)[:3] == (30, 600, 70)
    assert slice_of(600, 3600, Took(60, 30), 120).most == 80
    # A gap in the schedule that is shorter than the least, one that is longer, and one in which others fit too.
    assert [slice_of(600, None, Took(60, 30), 120, free).least for free in (5, 90, 900)] == [30, 90, 120]


def test_a_quick_save_leaves_time_for_a_slow_one():
    """And what the batch script needs after it."""
    leads = [slice_of(600, None, Took(60, stop), 120).lead for stop in (0.5, 30, 40, 100)]
    assert leads == [70, 70, 85, 175]
    # One that a user gave is the least.
    assert [slice_of(600, None, Took(60, stop), 120, None, 120).lead for stop in (0.5, 100)] == [120, 175]


def test_one_slice_in_vain_is_followed_by_one_twice_as_long():
    assert slice_of(600, None, Took(None, 6.0, 1800.0), 120)[:2] == (60, 600)
    assert slice_of(600, None, Took(60.0, 6.0, 1800.0), 120)[:2] == (60, 600)
    # Though little is left to do.
    assert slice_of(600, 60, Took(None, 6.0, 1800.0), 120).least == 60


def test_the_hole_ends_where_the_next_job_is_planned():
    assert hole([], 1000, 60) is None
    assert hole([1000 + 600, 1000 + 60 + 185], 1000, 60) == 3
    assert hole([1000], 1000, 60) == 0


JOBS = {"runs": [], "srun": [], "stage": [], "master": None, "max_requeues": 3, "signal_lead": 30, "nodes": 2}
JOBS |= {"cores": 1, "node_cores": 1, "slice": {"limit": 600}, "sizes": [1, 2]}


@pytest.fixture
def run_dir(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    (tmp_path / "slurm").mkdir()
    return tmp_path


def attempt(run_dir: Path, number: int, start: float, end: float, step=(0, 0), stages=None, **fields) -> None:
    """One that has ended."""
    nodes = fields.pop("nodes", ["n1", "n2"])
    begin = {"attempt": number, "job_id": "7", "restart": number, "start": start, "nodes": nodes, "step": step[0]}
    over = {"attempt": number, "end": end, "outcome": "stopped", "cause": "walltime", "step": step[1]}
    with open(run_dir / "slurm" / "attempts.jsonl", "a") as file:
        file.write(json.dumps(begin) + "\n" + json.dumps({**over, "fruitless": False, **fields}) + "\n")
    if stages:
        folder = run_dir / "logs" / f"attempt-{number}"
        folder.mkdir(parents=True)
        facts = {"started": start + 4, "first_step": step[0], "step": step[1], "seconds": stages}
        (folder / "stages.json").write_text(to_json(facts))


def commit(run_dir: Path, step: int) -> None:
    folder = run_dir / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")


def test_what_a_run_has_shown(run_dir):
    assert took(run_dir) == Took()
    assert left_seconds(run_dir, 2) is None
    assert queue_seconds(run_dir) is None
    stages = {"python": 1.0, "imports": 5.0, "step": 2.0, "steps": 99.0, "save": 6.0, "end": 1.0}
    attempt(run_dir, 1, 1000, 1200, (0, 100), stages)
    # Four seconds until the ranks were started, eight to the end of the first step; a step takes one.
    assert took(run_dir) == Took(12.0, 6.0 + 1.0 + 2 * 1.0 + 3.0)
    attempt(run_dir, 2, 1300, 1420, (100, 150), stages | {"steps": 98.0}, stop_s=20.0, nodes=["n1"])
    assert took(run_dir).stop == 20.0
    attempt(run_dir, 3, 1500, 2300, stages={"step": 796.0, "steps": 0.0})
    # One slow start of three is none of the next.
    assert took(run_dir) == Took(12.0, 20.0)
    assert [tuple(pace) for pace in paces(run_dir)] == [(2, 1.0, 99), (1, 2.0, 49)]
    (run_dir / "status.json").write_text('{"total_steps": 400}')
    commit(run_dir, 150)
    assert (left_seconds(run_dir, 1), left_seconds(run_dir, 2)) == (500.0, 250.0)
    assert queue_seconds(run_dir) == 90.0


def test_the_wait_for_another_cluster_counts_and_that_for_a_user_does_not(run_dir):
    """On another cluster both the job's id and the restart may be those of the one before."""
    where = {"job_id": "7", "restart": 0, "sent": "a"}
    attempts = [
        {**where, "attempt": 1, "cluster": "one", "start": 0, "end": 100, "cause": "walltime"},
        {**where, "attempt": 2, "cluster": "two", "start": 700, "end": 800, "cause": "walltime"},
        # In place.
        {**where, "attempt": 3, "cluster": "two", "start": 810, "end": 900, "cause": "walltime"},
        {**where, "attempt": 4, "cluster": "one", "start": 9000, "end": 9100, "cause": "walltime", "sent": "b"},
    ]
    lines = [json.dumps({"nodes": ["n1"], "step": 0, **one}) for one in attempts]
    (run_dir / "slurm" / "attempts.jsonl").write_text("\n".join(lines) + "\n")
    assert queue_seconds(run_dir) == 600.0


def test_a_slice_that_was_too_short_to_start_asks_for_a_longer_one(run_dir):
    """And ends the run only where a longer one was of no use."""
    attempt(run_dir, 1, 1000, 1100)
    first = slicing.slice_now(JOBS, run_dir)
    assert took(run_dir) == Took(None, None, 100.0)
    attempt(run_dir, 2, 2000, 2000 + 60 * first.least)
    longer = slicing.slice_now(JOBS, run_dir).least
    assert longer == 2 * first.least >= 2 * UNKNOWN_MINUTES
    attempt(run_dir, 3, 6000, 6000 + 60 * longer, (0, 9), {"step": 600.0, "steps": 80.0, "save": 5.0})
    assert took(run_dir)[::2] == (604.0, None)


def test_a_job_asks_for_the_time_of_its_own_nodes(run_dir):
    """Of the sizes 1, 2 and 4, which are sent as two requests."""
    attempt(run_dir, 1, 1000, 2000, (0, 100), {"step": 2.0, "steps": 990.0, "save": 6.0}, stop_s=10.0, nodes=["n1"])
    (run_dir / "status.json").write_text('{"total_steps": 1000}')
    commit(run_dir, 100)
    jobs = JOBS | {"sizes": [1, 2, 4]}
    of_four, of_less = jobs | {"nodes": 4, "least_nodes": 4}, jobs | {"least_nodes": 1}
    assert 3 * slicing.slice_now(of_four, run_dir).most < slicing.slice_now(of_less, run_dir).most


def note_end(run_dir: Path, seconds: float, monkeypatch) -> dict:
    job = Job(JOBS, run_dir)
    job._begin()
    job.begun = time.time() - seconds
    job._note_end(End("stopped", ""), "walltime")
    return read_attempts(run_dir)[-1]


def test_slices_without_progress_end_the_run_where_longer_ones_have_not_helped(run_dir, monkeypatch):
    told = [note_end(run_dir, seconds, monkeypatch)["fruitless"] for seconds in (60, 120, 600, 600, 600, 600)]
    assert told == [False, False, False, True, True, True]
    assert "3 attempts in a row ended without a checkpoint" in (
        Job(JOBS | {"max_requeues": 100}, run_dir)._why_not() or ""
    )


def test_slices_with_progress_are_no_requeues(run_dir, monkeypatch):
    for number in range(1, 9):
        job = Job(JOBS, run_dir)
        job._begin()
        commit(run_dir, 10 * number)
        job._note_end(End("stopped", ""), "walltime")
        assert job.number == number
        assert Job(JOBS, run_dir)._why_not() is None
    # A fixed time counts each.
    fixed = JOBS | {"slice": None}
    for number in range(9, 14):
        job = Job(fixed, run_dir)
        job._begin()
        commit(run_dir, 10 * number)
        job._note_end(End("stopped", ""), "walltime")
    assert "started 5 times" in (Job(fixed, run_dir)._why_not() or "")


def test_the_ranks_are_told_when_the_slice_is_over(run_dir, monkeypatch):
    attempt(run_dir, 1, 1000, 1200, (0, 100), {"step": 2.0, "steps": 99.0, "save": 6.0}, stop_s=10.0)
    job = Job(JOBS, run_dir)
    assert job.clock.lead == 70
    job.clock.limit, job.clock.begun = time.time() + 85, time.time() - 1700
    assert job.why_to_stop() is None
    assert job.stop_asked is None
    job.clock.limit = time.time() + 69
    assert job.why_to_stop() == "the slice is over"
    job._begin()
    job._note_end(End("stopped", ""), "walltime")
    assert 0 <= read_attempts(run_dir)[-1]["stop_s"] < 20
    # Of a fixed slurm.time Slurm tells them.
    other = Job(JOBS | {"slice": None}, run_dir)
    other.clock.limit, other.clock.begun = time.time() + 29, time.time() - 1700
    assert other.clock.lead == 30
    assert other.why_to_stop() is None


def test_a_slice_that_is_shorter_than_its_lead_trains_at_least_half_of_it(run_dir, monkeypatch):
    """As where Slurm did not take what was asked for."""
    attempt(run_dir, 1, 1000, 1200, (0, 100), {"step": 2.0, "steps": 99.0, "save": 6.0}, stop_s=150.0)
    job = Job(JOBS, run_dir)
    assert job.clock.lead == 250
    limit = time.time() + 240
    monkeypatch.setattr("slurm.attend.end_time", lambda _: limit)
    # As after a question to which nobody answered at the start.
    assert not job.clock.was_drawn_nearer()
    assert job.why_to_stop() is None
    job.clock.begun -= 121
    job.clock.limit -= 121
    assert job.why_to_stop() == "the slice is over"


class Slurm:
    """What a job asks for on its way back to the queue, and what it is told."""

    def __init__(self, monkeypatch, requeued: str | None = None, refused: tuple[str, ...] = ()) -> None:
        """requeued: why it is not requeued. refused: what it may not change."""
        self.asked: list[str] = []
        self._requeued, self._refused = requeued, refused
        monkeypatch.setattr(requeue, "order", self._order)
        monkeypatch.setattr(requeue, "spread", lambda *_: None)
        monkeypatch.setattr(requeue, "job_state", lambda _: "RUNNING")
        monkeypatch.setattr(requeue.time, "sleep", lambda _: None)
        monkeypatch.setattr(slicing, "ask", self._ask)
        monkeypatch.setattr(slicing, "planned_starts", self._planned)

    def _order(self, command, left) -> str | None:
        self.asked.append(" ".join(command))
        return self._requeued

    def _ask(self, command) -> str:
        self.asked.append(" ".join(command))
        if any(word in self.asked[-1] for word in self._refused):
            raise ValueError(f"Slurm does not answer: {command[0]}: Access/permission denied")
        return ""

    def _planned(self, *_) -> list[float]:
        self.asked.append("planned")
        return [time.time() + 3600 + 150 + 5]


def send_back(run_dir: Path, without: str | None = None, **jobs) -> int:
    job = Job(JOBS | jobs, run_dir)
    if without:
        job.nodes.left_out[without] = "it is slow"
    return requeue.requeue(job, "walltime", End("stopped", ""))


def test_what_comes_next_is_worked_out_before_slurm_ends_the_script(run_dir, monkeypatch):
    """And asked for at once, by one order."""
    slurm = Slurm(monkeypatch)
    assert send_back(run_dir, without="n2", exclude="n9") == 0
    update = "scontrol update JobId=7 TimeLimit=600 TimeMin=60 ExcNodeList=n9,n2"
    assert slurm.asked == ["planned", "scontrol requeue 7", update]
    assert os.environ["SLURM_JOB_ID"] == "7"


def test_a_fixed_time_is_left_as_it_is(run_dir, monkeypatch):
    slurm = Slurm(monkeypatch)
    send_back(run_dir, slice=None)
    send_back(run_dir, slice=None, without="n2")
    assert slurm.asked == ["scontrol requeue 7"] * 2 + ["scontrol update JobId=7 ExcNodeList=n2"]


@pytest.mark.parametrize("word", ["Job is pending execution for job 7", "Job/step already completing"])
def test_a_slice_that_slurm_requeued_by_itself_does_not_keep_its_limit(run_dir, monkeypatch, word):
    slurm = Slurm(monkeypatch, word)
    monkeypatch.setattr(requeue, "job_state", lambda _: "PENDING")
    assert send_back(run_dir) == 0
    assert slurm.asked[-1] == "scontrol update JobId=7 TimeLimit=600 TimeMin=60"
    assert len(slurm.asked) == 3


def test_a_job_that_stays_as_it_is_keeps_its_limit(run_dir, monkeypatch):
    slurm = Slurm(monkeypatch, "Access/permission denied")
    monkeypatch.setattr(requeue, "job_state", lambda _: "RUNNING")
    send_back(run_dir)
    assert slurm.asked == ["planned", "scontrol requeue 7"]


def test_where_slurm_refuses_the_slice_stays(run_dir, monkeypatch, capfd):
    """And the rest is asked for without it."""
    slurm = Slurm(monkeypatch, refused=("TimeLimit",))
    send_back(run_dir, without="n2")
    assert "the next slice is as long as the last: Slurm does not answer: scontrol: Access" in capfd.readouterr().err
    assert slurm.asked[-1] == "scontrol update JobId=7 ExcNodeList=n2"


def test_what_cannot_be_read_does_not_keep_a_job_from_the_queue(run_dir, monkeypatch, capfd):
    slurm, job = Slurm(monkeypatch), Job(JOBS, run_dir)

    def stale(*_) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(slicing, "took", stale)
    assert requeue.requeue(job, "walltime", End("stopped", "")) == 0
    assert slurm.asked == ["planned", "scontrol requeue 7"]
    assert "the next slice is as long as the last: OSError(116" in capfd.readouterr().err


def test_a_preempted_job_asks_nothing_that_it_can_do_without(run_dir, monkeypatch):
    slurm, job = Slurm(monkeypatch), Job(JOBS, run_dir)
    monkeypatch.setattr(requeue, "spread", lambda *_: slurm.asked.append("spread"))
    requeue.requeue(job, "walltime", End("stopped", ""))
    job.in_haste = True
    requeue.requeue(job, "preempted", End("stopped", ""))
    update = "scontrol update JobId=7 TimeLimit=600 TimeMin"
    before = ["planned", "spread", "scontrol requeue 7", f"{update}=60"]
    assert slurm.asked == [*before, "scontrol requeue 7", f"{update}=30"]


def test_a_run_that_is_cancelled_on_its_way_back_ends(run_dir, monkeypatch):
    slurm, job = Slurm(monkeypatch), Job(JOBS, run_dir)
    end_file(run_dir, "cancelled").touch()
    assert requeue.requeue(job, "walltime", End("stopped", "")) == 0
    assert not slurm.asked
    assert (status(run_dir)["state"], status(run_dir)["failure"]) == ("stopped", "user")


@pytest.mark.parametrize("failing", ["look", "why_to_stop"])
def test_what_fails_beside_a_step_is_tried_again(run_dir, monkeypatch, capfd, failing):
    """The ranks are told to save, whatever the file system does meanwhile."""
    job, ended, fails = Job(JOBS, run_dir), threading.Event(), iter([True, True])

    def fail_twice(*_) -> str | None:
        if next(fails, False):
            raise OSError(errno.ESTALE, "Stale file handle")
        return None if failing == "look" else "the slice is over"

    monkeypatch.setattr(*((attend, "look") if failing == "look" else (job, "why_to_stop")), fail_twice)
    if failing == "look":
        monkeypatch.setattr(job, "why_to_stop", lambda: "the slice is over")
    monkeypatch.setattr(job, "tell_to_stop", ended.set)
    monkeypatch.setattr(job.clock, "limit", time.time() + 3600)
    beside = threading.Thread(target=attend.attend, args=(job, ended))
    beside.start()
    beside.join(20)
    assert ended.is_set()
    assert capfd.readouterr().err == "beside the ranks: [Errno 116] Stale file handle\n"


def test_in_the_last_seconds_no_plan_is_asked_for(run_dir, monkeypatch):
    slurm, job = Slurm(monkeypatch), Job(JOBS, run_dir)
    job.clock.limit = time.time() + 15
    requeue.requeue(job, "walltime", End("stopped", ""))
    assert slurm.asked == ["scontrol requeue 7", "scontrol update JobId=7 TimeLimit=600 TimeMin=30"]
