"""What this process has come to since it was started, and when: imports, joining the other ranks, data, first step."""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path

STAGES = {
    "python": "starting Python",
    "recipe": "reading the recipe",
    "imports": "imports",
    "join": "joining the other ranks",
    "stage": "copying data to the node",
    "look": "looking at the data",
    "start": "finding where to start from",
    "build": "building the network",
    "restore": "restoring a checkpoint",
    "open": "run directory, logs, data workers",
    "batch": "first batch",
    "step": "first step",
    "steps": "further steps",
    "save": "last save",
    "end": "report and last files",
}
"""The stages of a rank, in their order; one that a run has no need of does not come."""

_ends: dict[str, float] = {}


def begin() -> None:
    """Python is up, and begins with a run."""
    _ends.clear()
    reached("python")


def reached(stage: str) -> None:
    """Note that this process is through with a stage, the first time that it is."""
    assert stage in STAGES, stage
    if stage not in _ends:
        _ends[stage] = age()


def seconds() -> dict[str, float]:
    """By stage what it took, since the end of the one before it; in the order in which they came."""
    # A checkpoint's thread may ask while this process comes to the next.
    stages = list(_ends.items())
    ends = [0.0, *(end for _, end in stages)]
    return {stage: round(end - before, 3) for (stage, end), before in zip(stages, ends, strict=False)}


def age() -> float:
    """Seconds since this process was started."""
    return _clock() - _birth(os.getpid())


def _clock() -> float:
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@cache
def _birth(process: int) -> float:
    """When it was started, by `_clock`; where the kernel does not tell, when it was first asked for."""
    try:
        told = Path(f"/proc/{process}/stat").read_text()
        # The name before it may hold spaces and brackets.
        return int(told.rpartition(") ")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return _clock()
