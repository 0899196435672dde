"""Beside a job step: when the job's time ends, and telling the ranks to save and stop. Standard library, Python 3.9."""

from __future__ import annotations

import subprocess
import threading
import time
from typing import TYPE_CHECKING

from slurm.control import end_time
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
    reminded, later = 0.0, pauses(ASK_SECONDS, ASK_SECONDS_MOST)
    next_question = time.monotonic() + next(later)
    while not ended.wait(1):
        if job.clock.limit is None and not job.told and time.monotonic() > next_question:
            job.clock.ask()
            next_question = time.monotonic() + next(later)
        look(job)
        if job.why_to_stop() and time.monotonic() - reminded > REMIND_SECONDS:
            # Again and again: a step that is just starting does not hear it.
            job.tell_to_stop()
            reminded = time.monotonic()
        if (left := job.clock.left()) is not None and left < LAST_SECONDS:
            job.finish(End("killed", "the ranks had not saved in time (slurm.signal_lead)"))
            return


def tell_to_stop(job_id: str) -> None:
    """Tell all ranks of a job to save and stop."""
    subprocess.run(["scancel", "--signal=USR2", job_id], capture_output=True)
