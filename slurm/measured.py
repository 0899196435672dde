"""What the attempts of a run have shown: seconds to start, to stop, of a step, in the queue. Standard library, 3.9."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from resnet.rundir.attempts import newest_step, read_attempts
from resnet.rundir.files import number
from resnet.rundir.stages import AT_START, read_stages
from resnet.rundir.status import status_or_nothing
from slurm.slices import Took

NEWEST = 3
"""Attempts that are looked at: what they took changes with the cluster."""
LEAVE_SECONDS = 3.0
"""Of ranks that have saved, until srun is through with them."""
QUEUE_SECONDS = 150.0
"""From the end of an attempt to the start of the next on idle nodes, of a run that has shown none: Slurm holds a
requeued job for two minutes."""

GAVE_BACK = ("walltime", "grow", "preempted")
"""Causes of ends after which the job waits in the queue."""


class Pace(NamedTuple):
    """How fast an attempt was."""

    nodes: int
    step_seconds: float
    """Wall-clock of a step, with the evaluations and saves between."""
    steps: int
    """That show it: all of the attempt but its first."""


def took(run_dir: Path) -> Took:
    """What the newest attempts took to start, as a rule, and to stop, at the most."""
    starts, stops, vain = [], [], None
    for attempt in read_attempts(run_dir)[-NEWEST:]:
        stages = read_stages(run_dir, attempt["attempt"])
        if (start := _start(attempt, stages)) is not None:
            starts.append(start)
            vain = None
        elif attempt.get("cause") == "walltime":
            vain = max(vain or 0.0, attempt["end"] - attempt["start"])
        if (stop := _stop(attempt, stages)) is not None:
            stops.append(stop)
    return Took(statistics.median(starts) if starts else None, max(stops, default=None), vain)


def _start(attempt: Mapping[str, Any], stages: Mapping[str, Any]) -> float | None:
    seconds = stages.get("seconds", {})
    if "step" in seconds:
        before = max(0.0, (number(stages.get("started")) or attempt["start"]) - attempt["start"])
        return before + sum(seconds.get(stage, 0.0) for stage in AT_START)
    return None


def _stop(attempt: Mapping[str, Any], stages: Mapping[str, Any]) -> float | None:
    if (measured := number(attempt.get("stop_s"))) is not None:
        return measured
    seconds = stages.get("seconds", {})
    if "save" not in seconds:
        return None
    pace = pace_of(attempt, stages)
    # A step under way, and the one in which the ranks agree.
    return seconds["save"] + seconds.get("end", 0.0) + 2 * (pace.step_seconds if pace else 0.0) + LEAVE_SECONDS


def pace_of(attempt: Mapping[str, Any], stages: Mapping[str, Any]) -> Pace | None:
    """Of an attempt that has ended; None where it made no further step after its first."""
    spent, first, last = (number(value) for value in (stages.get("seconds", {}).get("steps"), *_steps(stages)))
    if not spent or first is None or last is None or last - first < 2:
        return None
    made = int(last - first - 1)
    return Pace(len(attempt["nodes"]), spent / made, made)


def _steps(stages: Mapping[str, Any]) -> tuple[Any, Any]:
    return stages.get("first_step"), stages.get("step")


def paces(run_dir: Path) -> list[Pace]:
    """Of the attempts that have ended, in their order."""
    found = (pace_of(attempt, read_stages(run_dir, attempt["attempt"])) for attempt in read_attempts(run_dir))
    return [pace for pace in found if pace]


def left_seconds(run_dir: Path, nodes: int) -> float | None:
    """What is left to do after the newest checkpoint, on so many nodes, as fast a node as it was; None: not known."""
    total, known = number(status_or_nothing(run_dir).get("total_steps")), paces(run_dir)
    if not total or not known:
        return None
    last = known[-1]
    return max(0.0, total - newest_step(run_dir)) * last.step_seconds * last.nodes / nodes


def queue_seconds(run_dir: Path) -> float | None:
    """The median wait between an attempt that gave its nodes back and the next; None where there was none."""
    waits, before = [], None
    for after in read_attempts(run_dir):
        if before and before.get("cause") in GAVE_BACK and _waited(before, after):
            waits.append(after["start"] - before["end"])
        before = after
    return statistics.median(waits) if waits else None


def _waited(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether it was the queue that an attempt waited for, after the one before."""
    return _sent(before) == _sent(after) and _started(before) != _started(after)


def _started(attempt: Mapping[str, Any]) -> tuple[Any, ...]:
    """What attempts share of which the second was restarted in place."""
    return tuple(attempt.get(key) for key in ("cluster", "job_id", "restart"))


def _sent(attempt: Mapping[str, Any]) -> Any:
    """What attempts share that were sent by one command: between those of two a user has waited too."""
    return attempt.get("sent") or _started(attempt)[:2]
