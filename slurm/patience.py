"""How a job waits for a controller that does not answer. Only the standard library, Python 3.9.

A maintenance ends for a thousand jobs at once: they come back at times of their own, and less and less often.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence

from slurm.control import PATIENT_SECONDS, ask

FIRST_SECONDS, MOST_SECONDS = 2.0, 60.0
"""From one question to the next, at first and later on."""
SPREAD_SECONDS, MOST_SPREAD_SECONDS = 2.0, 20.0
"""Over which the jobs of an array that end together give their orders: a small one, and the largest."""
SPREAD_EACH_SECONDS = 0.05
"""For each job of an array."""
UNHEARD_SECONDS = 600.0
"""For an order, before it is given up."""
_SILENCE = (
    *("unable to contact", "timed out", "took more than", "connection refused", "communication connection"),
    *("zero bytes were transmitted", "protocol authentication error", "in standby mode", "not connected"),
    *("connection reset", "broken pipe"),
)
"""By which Slurm's commands say that the controller was not heard, or was about to end; all else is its answer."""


def pauses(first: float = FIRST_SECONDS, most: float = MOST_SECONDS) -> Iterator[float]:
    """Seconds to the next question, without end: twice as long each time, and no two jobs' the same."""
    pause = first
    while True:
        yield random.uniform(0.5, 1.0) * pause
        pause = min(2 * pause, most)


def spread(most: float = MOST_SPREAD_SECONDS) -> None:
    """Let jobs that come here at the same moment go on one after the other. most: seconds that this one has."""
    jobs = os.environ.get("SLURM_ARRAY_TASK_COUNT", "")
    seconds = SPREAD_EACH_SECONDS * int(jobs) if jobs.isdigit() else 0.0
    time.sleep(random.uniform(0, min(most, MOST_SPREAD_SECONDS, max(SPREAD_SECONDS, seconds))))


def is_silence(said: str) -> bool:
    """Whether Slurm's words are that the controller was not heard, and no answer of it."""
    return any(words in said.lower() for words in _SILENCE)


def order(command: Sequence[str], left: Callable[[], float | None] = lambda: None) -> str | None:
    """Give Slurm an order, again until it is heard; returns its own words where it refuses, or was never heard.

    left: asked for the seconds that the job has, None without a limit.
    """
    deadline = time.monotonic() + UNHEARD_SECONDS
    for pause in pauses():
        try:
            ask(command, PATIENT_SECONDS)
            return None
        except ValueError as error:
            problem = str(error).removeprefix("Slurm does not answer: ")
        seconds = left()
        late = time.monotonic() + pause > deadline or (seconds is not None and seconds < pause)
        if late or not is_silence(problem):
            return problem
        time.sleep(pause)
    return None
