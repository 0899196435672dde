"""How long a slice of a run should be, and when its ranks are told to save. Only the standard library, Python 3.9."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

SHARE = 0.05
"""Of the shortest slice worth starting, that starting and saving may take."""
UNKNOWN_MINUTES = 30
"""The shortest slice of a run of which nobody knows what starting and saving take."""
UNLIMITED_MINUTES = 24 * 60
"""The longest, where the partition has no limit."""
NEED_MARGIN, NEED_SECONDS = 1.25, 120.0
"""By which what is left to do is taken to be longer than it is estimated."""
STOP_MARGIN, HEARD_SECONDS = 1.5, 15.0
"""By which saving may take longer than it did; and until all ranks have heard that they are to."""
LEAD_SECONDS = 60.0
"""To save in, at the least: a file system that is shared has slow minutes."""
LAST_SECONDS = 10.0
"""Before the time limit, when Slurm would end the batch script too: enough to requeue the job."""
GAP_MOST = 4
"""Times the shortest slice worth starting, to which it is lengthened for a gap: others may take the nodes, and what is
asked for then has to fit elsewhere."""
LONGER = 2
"""Times a slice that was over before its first step, that the next has to be."""
BACKSTOP_SECONDS = 1
"""Before its limit, at which Slurm itself tells the ranks of a slice, should the batch script not have done so before.
Slurm is half a minute early with that, which cuts short slices of runs that save in less."""


class Took(NamedTuple):
    """Seconds that a run, or one like it, has shown; None where it has not."""

    start: float | None = None
    """From the start of its job to the end of its first step."""
    stop: float | None = None
    """From the signal until all ranks had saved and left."""
    vain: float | None = None
    """Of a slice since the last that started, which was over before its first step: of several the longest."""


class Slice(NamedTuple):
    """What Slurm is asked for."""

    least: int
    """Minutes: --time-min."""
    most: int
    """Minutes: --time."""
    lead: int
    """Seconds before the limit at which the ranks are told to save."""
    limit: int | None = None
    """Minutes that the partition, and the user, allow."""


def slice_of(
    limit: int | None, need: float | None, took: Took, unknown_lead: int, hole: int | None = None, least_lead: int = 0
) -> Slice:
    """The slice to ask for.

    limit: minutes that the partition, and the user, allow, None: any. need: seconds of training that are left, None:
    nobody knows. unknown_lead: seconds to save in where nobody knows. hole: minutes for which nodes are free, None:
    nobody knows. least_lead: seconds before the limit at which the ranks are told to save, whatever is known.
    """
    lead, in_vain = _lead(took, unknown_lead, least_lead), LONGER * (took.vain or 0)
    most = limit or UNLIMITED_MINUTES
    if need is not None:
        start = max(took.start or 0, in_vain)
        most = min(most, math.ceil((NEED_MARGIN * need + NEED_SECONDS + start + lead) / 60))
    most = max(1, most)
    least = min(most, max(_least(took, lead), math.ceil(in_vain / 60)))
    if hole is not None:
        least = max(least, min(most, hole, GAP_MOST * least))
    return Slice(least, most, max(1, min(lead, 30 * least)), limit)


def _lead(took: Took, unknown: int, least: int) -> int:
    """Seconds before the limit at which the ranks are told to save."""
    if took.stop is None:
        return unknown
    return max(least, math.ceil(max(LEAD_SECONDS, STOP_MARGIN * took.stop + HEARD_SECONDS) + LAST_SECONDS))


def _least(took: Took, lead: int) -> int:
    """Minutes of the shortest slice worth starting."""
    if took.start is None or took.stop is None:
        return max(UNKNOWN_MINUTES, math.ceil(2 * ((took.start or 0) + lead) / 60))
    return math.ceil(max((took.start + took.stop) / SHARE, 2 * (took.start + lead)) / 60)


def hole(planned: Iterable[float], now: float, wait: float) -> int | None:
    """Minutes for which what is free stays so: until the first of the jobs that wait is planned to start.

    planned: unix times. wait: seconds from now until a job that is sent now may start.
    None where no start is planned.
    """
    first = min(planned, default=None)
    return None if first is None else max(0, math.floor((first - now - wait) / 60))
