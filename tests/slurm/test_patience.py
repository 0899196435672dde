"""A controller that does not answer is asked again, by a thousand jobs at a thousand times, and an order is heard."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from slurm import patience, srun
from slurm.patience import order, pauses
from slurm.srun import await_controller

SILENT = "slurm_requeue error: Unable to contact slurm controller (connect failure)"


@pytest.fixture
def slept(monkeypatch) -> list[float]:
    """What is waited in all, which takes no time."""
    waited = [0.0]

    def sleep(seconds: float) -> None:
        waited[0] += seconds

    clock = SimpleNamespace(sleep=sleep, monotonic=lambda: waited[0])
    for module in (patience, srun):
        monkeypatch.setattr(module, "time", clock)
    return waited


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """An scontrol that says so until it was asked so often; returns what counts the questions."""
    calls = tmp_path / "calls"
    calls.touch()

    def make(says: str, times: int = 10**6):
        script = tmp_path / "scontrol"
        script.write_text(
            f"#!/bin/sh\necho >> {calls}\n[ $(wc -l < {calls}) -le {times} ] || {{ echo is UP; exit 0; }}\n"
            f'echo "{says}" >&2; exit 1\n'
        )
        script.chmod(0o755)
        return lambda: len(calls.read_text().splitlines())

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return make


def test_an_order_is_given_until_it_is_heard(scontrol, slept):
    asked = scontrol(SILENT, 3)
    assert order(["scontrol", "requeue", "7"]) is None
    assert (asked(), 7 <= slept[0] <= 14) == (4, True)


def test_a_refusal_is_an_answer(scontrol, slept):
    asked = scontrol("Job/step already completing or completed")
    assert "already completing" in (order(["scontrol", "requeue", "7"]) or "")
    assert (asked(), slept[0]) == (1, 0)


@pytest.mark.parametrize(("left", "most"), [(None, patience.UNHEARD_SECONDS), (20.0, 20.0)])
def test_no_longer_than_the_job_has(scontrol, slept, left, most):
    asked = scontrol(SILENT)
    assert "Unable to contact" in (order(["scontrol", "requeue", "7"], lambda: left and left - slept[0]) or "")
    assert 0.3 * most < slept[0] <= most
    assert asked() <= 20


def test_a_controller_that_is_away_is_asked_ever_less(scontrol, slept):
    asked = scontrol(SILENT)
    assert not await_controller(600, lambda: False)
    assert asked() <= 90
    assert slept[0] == pytest.approx(600, abs=20)
    assert not await_controller(600, lambda: True)


def test_two_hundred_jobs_that_lose_the_controller_together_come_back_apart():
    times = [list(itertools.accumulate(itertools.islice(pauses(), 6))) for _ in range(200)]
    for number, most in ((0, 120), (5, 15)):
        moments = sorted(each[number] for each in times)
        # Questions in the busiest half second: of 200 at first, and once they have drawn apart.
        busiest = max(sum(start <= moment < start + 0.5 for moment in moments) for start in moments)
        assert busiest <= most


def test_the_more_jobs_an_array_has_the_longer_they_take_to_come_one_after_the_other(slept, monkeypatch):
    """So that a thousand which end together ask not all in the same two seconds, nor one later than it has time."""

    def latest(jobs: int | None, *most: float) -> float:
        before = slept[0]
        monkeypatch.delenv("SLURM_ARRAY_TASK_COUNT", raising=False)
        if jobs:
            monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", str(jobs))
        monkeypatch.setattr(patience.random, "uniform", lambda _, end: end)
        patience.spread(*most)
        return slept[0] - before

    found = [latest(None), latest(10), latest(200), latest(1000), latest(100_000), latest(1000, 3.0)]
    assert found == pytest.approx([2.0, 2.0, 10.0, 20.0, 20.0, 3.0])
