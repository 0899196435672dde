"""When a job on few nodes of its range gives them up for more."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet.rundir.attempts import end_file, read_attempts
from resnet.rundir.files import to_json
from resnet.rundir.status import write_status
from slurm import grow
from slurm.batch import Job
from slurm.ends import End
from slurm.grow import SHOWN_STEPS, Left, gain, look, pause, speedup
from slurm.measured import Pace
from slurm.room import Room
from slurm.slices import Took

JOBS = {"runs": [], "srun": [], "stage": [], "master": None, "max_requeues": 3, "signal_lead": 30, "nodes": 4}
JOBS |= {"cores": 1, "node_cores": 1, "slice": None, "sizes": [1, 2, 4], "grow": 5}


def test_a_run_is_taken_to_scale_as_it_has_shown():
    left = Left(1000, 4.0, 1)
    assert speedup(left, 4, []) == pytest.approx(4**0.9)
    assert speedup(left, 4, [Pace(4, 2.0, 50)]) == 2.0
    # Half as much again on twice the nodes, and so on.
    assert speedup(left, 4, [Pace(2, 4.0 / 1.5, 50)]) == pytest.approx(1.5**2)
    # Nothing is faster than linear, or slower than it was, that was not measured.
    assert speedup(left, 4, [Pace(2, 1.0, 50)]) == 4.0
    assert speedup(left, 4, [Pace(2, 9.0, 50)]) == 1.0


def test_a_few_steps_do_not_decide_how_a_run_scales():
    left = Left(1000, 4.0, 1)
    few = Pace(4, 9.0, 3)
    assert speedup(left, 4, [few]) == speedup(left, 4, [])
    # Nor do they count as much as many.
    assert speedup(left, 4, [few, Pace(4, 2.0, 997)]) == pytest.approx(4.0 / (0.003 * 9.0 + 0.997 * 2.0))
    assert speedup(left, 4, [few] * SHOWN_STEPS) == pytest.approx(4.0 / 9.0)


@given(st.floats(1, 1e6), st.floats(0.01, 100), st.integers(2, 64), st.floats(0, 1e4), st.floats(0, 1e4))
def test_growing_gains_less_than_what_is_left_and_less_where_the_queue_is_longer(steps, each, nodes, wait, more):
    left, took = Left(steps, each, 1), Took(10.0, 5.0)
    won = gain(left, nodes, [], took, wait)
    assert won < left.seconds
    assert gain(left, nodes, [], took, wait + more) <= won
    assert gain(left, nodes, [Pace(nodes, each, 50)], took, wait) == pytest.approx(
        -15.0 - wait, abs=1e-6 * left.seconds
    )


@pytest.fixture
def job(tmp_path, monkeypatch) -> Job:
    """On one node, ten minutes after its first step, and an hour from its end: a step takes a second."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    (tmp_path / "slurm").mkdir()
    job, now = Job(JOBS, tmp_path), time.time()
    job._begin()
    job.begun = now - 600
    stages = {"started": now - 610, "first_step": 0, "step": 1, "seconds": {"imports": 8.0, "step": 2.0}}
    (job.logs / "stages.json").write_text(to_json(stages))
    tell(job, 601, 3600)
    job.clock.limit = now + 7200
    return job


def tell(job: Job, step: int, left: int) -> None:
    write_status(job.run_dir, state="running", step=step, total_steps=step + left)


def offer(monkeypatch, idle: int, starts_now: bool = True, others: bool = False) -> list:
    asked = []
    monkeypatch.setattr(grow, "room", lambda _: asked.append("idle") or Room(None, idle, ("low", "long")))
    monkeypatch.setattr(grow, "others_wait", lambda partitions: asked.append(partitions) or others)
    monkeypatch.setattr(grow, "_starts_now", lambda _, nodes: asked.append(nodes) or starts_now)
    return asked


@pytest.mark.parametrize(("idle", "size"), [(0, None), (1, 2), (2, 2), (3, 4), (9, 4)])
def test_a_job_takes_the_most_nodes_that_are_free(job, monkeypatch, idle, size):
    asked = offer(monkeypatch, idle)
    look(job)
    assert asked == (["idle", ("low", "long"), size - 1] if size else ["idle"])
    assert (job.bigger or "").startswith(f"{size} nodes are free for it in the place of 1" if size else "")
    assert bool(job.bigger) == bool(size)
    # Not again before its time, whatever it has found.
    job.bigger = None
    look(job)
    assert len(asked) == (3 if size else 1)


@pytest.mark.parametrize(
    "change",
    [
        # Not yet for five minutes: since the attempt began.
        lambda job: setattr(job, "begun", time.time() - 200),
        # To save, wait and start takes longer than is won.
        lambda job: tell(job, 601, 120),
        lambda job: setattr(job.clock, "limit", time.time() + 900),
        lambda job: setattr(job, "told", "signal SIGTERM"),
        lambda job: end_file(job.run_dir, "cancelled").touch(),
        lambda job: job.jobs.update(grow=None),
        lambda job: job.jobs.update(sizes=[1]),
        lambda job: job.jobs.update(nodes=1),
        # Sent for four nodes, of which it has lost some: it would wait for four.
        lambda job: job.jobs.update(least_nodes=4),
        # Of too few steps its speed is not known.
        lambda job: tell(job, SHOWN_STEPS, 3600),
        lambda job: write_status(job.run_dir, state="queued"),
        lambda job: (job.logs / "stages.json").unlink(),
    ],
)
def test_a_growth_that_does_not_pay_is_not_even_asked_for(job, monkeypatch, change):
    asked = offer(monkeypatch, 9)
    job.jobs = dict(job.jobs)
    change(job)
    look(job)
    assert (asked, job.bigger) == ([], None)


@pytest.mark.parametrize("answer", [{"starts_now": False}, {"others": True}])
def test_nodes_for_which_others_wait_are_left_to_them(job, monkeypatch, answer):
    """A job that waits for all four nodes would start on those that this one gives back."""
    offer(monkeypatch, 9, **answer)
    look(job)
    assert job.bigger is None


def attempts(job: Job, *nodes: int, cause: str | None = "grow") -> None:
    job.before = [{"attempt": at, "nodes": ["n"] * count, "cause": cause} for at, count in enumerate(nodes, 1)]


def test_a_job_that_got_the_same_nodes_back_looks_less_and_less_often(job, monkeypatch):
    assert pause(job) == 300
    for before, times in {(1,): 2, (1, 1): 4, (1, 1, 1): 8, (2, 1): 4, (1, 2, 1): 4}.items():
        attempts(job, *before)
        assert pause(job) == 300 * times, before
    # It has two by now, the first time that it tried; or went back for another reason.
    monkeypatch.setattr(job, "nodes", SimpleNamespace(in_use=["n1", "n2"]))
    attempts(job, 1, 1)
    assert pause(job) == 300
    attempts(job, 2, 2, cause="walltime")
    assert pause(job) == 300
    asked = offer(monkeypatch, 9)
    attempts(job, 2, 2)
    look(job)
    assert asked == []


def sbatch(folder: Path, words: str, code: int = 0) -> None:
    """A Slurm that says this."""
    file = folder / "bin" / "sbatch"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f'#!/bin/sh\necho "$@" > {folder}/asked\necho "{words}" >&2\nexit {code}\n')
    file.chmod(0o755)


@pytest.mark.parametrize(
    ("after", "code", "starts"), [(-1, 0, True), (30, 0, True), (600, 0, False), (None, 0, False), (-1, 1, False)]
)
def test_slurm_is_asked_for_a_job_like_it_on_the_nodes_that_are_missing(
    job, tmp_path, monkeypatch, after, code, starts
):
    start = "never" if after is None else int(time.time() + after)
    sbatch(tmp_path, f"sbatch: Job 9 to start at {start} using 2 processors on nodes n[2-3] in partition low", code)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    assert grow._starts_now(job, 2) == starts
    assert (tmp_path / "asked").read_text().split() == ["--test-only", "--nodes=2", f"{tmp_path}/slurm/7_submission.sh"]


@pytest.mark.parametrize("job_id", ["7", "7_3"])
def test_the_script_is_that_of_the_request_by_which_the_job_was_sent(job, tmp_path, monkeypatch, job_id):
    sbatch(tmp_path, "sbatch: error: no such partition", 1)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    job.jobs, job.job_id = {**job.jobs, "folder": f"{tmp_path}/slurm/request-2"}, job_id
    assert not grow._starts_now(job, 1)
    assert (tmp_path / "asked").read_text().split()[-1] == f"{tmp_path}/slurm/request-2/7_submission.sh"


def end(job: Job, monkeypatch, word: str | None = None) -> dict:
    monkeypatch.setattr(job.log, "slurms_word", lambda: word)
    monkeypatch.setattr(job, "requeue", lambda reason, end: job.record(asked=reason) or 0)
    monkeypatch.setattr(job.on_nodes, "leave_for_others", lambda: None)
    job.finish(End("stopped", "signal SIGUSR2"))
    return read_attempts(job.run_dir)[-1]


def test_the_end_says_what_for(job, monkeypatch):
    offer(monkeypatch, 3)
    look(job)
    assert job.why_to_stop()
    told = end(job, monkeypatch)
    assert (told["cause"], told["planned"], told["fruitless"]) == ("grow", True, False)
    assert told["asked"].startswith("grow: 4 nodes are free for it in the place of 1, to end about ")


def test_a_preemption_or_a_cancel_in_between_wins(job, monkeypatch):
    offer(monkeypatch, 3)
    look(job)
    assert end(job, monkeypatch, "PREEMPTION")["cause"] == "preempted"


def test_a_cancel_in_between_wins(job, monkeypatch):
    offer(monkeypatch, 3)
    look(job)
    end_file(job.run_dir, "cancelled").touch()
    told = end(job, monkeypatch)
    assert told["cause"] == "cancelled"
    assert "asked" not in told
    assert json.loads((job.run_dir / "status.json").read_text())["state"] == "stopped"
