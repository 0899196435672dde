"""Beside a job step: when the job's time ends, and telling the ranks to save and stop. Standard library, Python 3.9."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING

from slurm.control import PATIENT_SECONDS, ask, end_time
from slurm.ends import End
from slurm.grow import look
from slurm.patience import pauses
from slurm.slices import LAST_SECONDS

if TYPE_CHECKING:
    from slurm.batch import Job

EARLY_SECONDS = 60
"""By which Slurm may send its signal before it was asked to."""
REMIND_SECONDS = 5.0
ASK_SECONDS, ASK_SECONDS_MOST = 60.0, 960.0
"""From one question for the time limit to the next, where Slurm did not answer, or knows none."""


class Clock:
    """The time that Slurm gives a job.

    lead: seconds before its end at which the ranks are told to save and stop.
    """

    def __init__(self, job_id: str, lead: float) -> None:
        self._job_id, self.lead = job_id, lead
        self.limit: float | None = None
        """Unix time at which Slurm ends the job; None where it has no limit, or has not answered."""
        self.begun = time.time()
        """Of the job, but for the seconds that it took to come here."""

    def ask(self) -> None:
        self.limit = end_time(self._job_id)

    def left(self) -> float | None:
        """Seconds until then."""
        return None if self.limit is None else self.limit - time.time()

    def is_near(self) -> bool:
        """Whether the end is so near that the ranks have been told of it, or are about to be."""
        left = self.left()
        return left is not None and left <= self.lead + EARLY_SECONDS

    def was_drawn_nearer(self) -> bool:
        """Whether Slurm ends the job sooner than it said before, as it does with one that is preempted."""
        limit = end_time(self._job_id)
        if limit is not None and self.limit is not None and limit < self.limit:
            return True
        self.limit = limit or self.limit
        return False


def attend(job: Job, ended: threading.Event) -> None:
    """While a step runs: tell it to save and stop where it is to, and be quicker than the time limit."""
    # A slice has to know its end: Slurm's own signal comes too late for it.
    reminded, later = 0.0, pauses(ASK_SECONDS, ASK_SECONDS if job.jobs.get("slice") else ASK_SECONDS_MOST)
    next_question, troubles = time.monotonic() + next(later), set()
    while not ended.wait(1):
        with _going_on(troubles):
            if job.clock.limit is None and not job.told and time.monotonic() > next_question:
                next_question = time.monotonic() + next(later)
                job.clock.ask()
        with _going_on(troubles):
            look(job)
        with _going_on(troubles):
            if job.why_to_stop() and time.monotonic() - reminded > REMIND_SECONDS:
                # Again and again: a step that is just starting does not hear it.
                reminded = time.monotonic()
                job.tell_to_stop()
        if (left := job.clock.left()) is not None and left < LAST_SECONDS:
            job.finish(End("killed", "the ranks had not saved in time (slurm.signal_lead)"))
            return


@contextlib.contextmanager
def _going_on(troubles: set[str]) -> Iterator[None]:
    """What fails in it, as a file system or a controller may for a time, is told once, and tried again."""
    try:
        yield
    except Exception as error:
        if repr(error) not in troubles:
            troubles.add(repr(error))
            if isinstance(error, (OSError, ValueError)):
                print(f"beside the ranks: {error}", file=sys.stderr, flush=True)
            else:
                traceback.print_exc()


def tell_to_stop(job_id: str) -> None:
    """Tell all ranks of a job to save and stop. Raises ValueError where Slurm does not take it."""
    ask(["scancel", "--signal=USR2", job_id], PATIENT_SECONDS)
