"""What runs have shown of their course, and what of it follows for another: its attempts, its hours, its end."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from launch.runs.read_once import once
from resnet.rundir.metrics_log import read_points
from resnet.rundir.spent import Attempt, Spent, spent


class Span(NamedTuple):
    """What is likely, and between what."""

    low: float
    likely: float
    high: float

    def plus(self, other: Span) -> Span:
        return Span(*(mine + its for mine, its in zip(self, other, strict=True)))

    def times(self, factor: float) -> Span:
        return Span(*(mine * factor for mine in self))


NONE = Span(0.0, 0.0, 0.0)


class Course(NamedTuple):
    """What runs have shown."""

    step: Span
    """Device-seconds of a step: its seconds times the ranks."""
    evaluation: float
    """Device-seconds of one; 0 where none was measured."""
    start: float
    """Seconds of an attempt in which it does not train: until its first step, and leaving."""
    wait: Span | None
    """Seconds in the queue between two attempts; None where there were none."""
    steps_per_epoch: float


class Limit(NamedTuple):
    """Of an attempt, in seconds."""

    least: float
    most: float
    """More than the least of slices alone, which Slurm makes as long as there is room for."""
    lead: float
    """Before it, in which no more is trained."""


class Outlook(NamedTuple):
    """What is to come of a run."""

    seconds: Span
    """In its jobs, without the queue."""
    device_seconds: Span
    attempts: int
    """Further ones, where each has the least of its limit."""
    fewest: int
    """Where each has the most of it."""
    wait: Span | None
    """Seconds in the queue before further attempts; None: there are some, and nothing is known of the queue."""


def span_of(values: Sequence[float]) -> Span | None:
    """The median, between the least and the most; of ten or more, without a tenth at each end."""
    if not values:
        return None
    if len(values) < 10:
        return Span(min(values), statistics.median(values), max(values))
    tenths = statistics.quantiles(values, n=10)
    return Span(tenths[0], statistics.median(values), tenths[-1])


def course_of(runs: Sequence[tuple[Path, dict[str, Any]]], batch_size: int, by_rate: bool = False) -> Course | None:
    """What runs that train the same have shown; None without one that has trained.

    runs: each with its status. by_rate: the speed is that of the status, and not measured anew.
    """
    shown = [(run, status, found) for run, status in runs if (found := once(spent, run)) is not None]
    steps = [step for _, status, found in shown if (step := _step(status, found, batch_size, by_rate))]
    if not steps:
        return None
    step = span_of(steps) if len(steps) > 1 else _with_scatter(steps[0], [run for run, _, _ in shown])
    attempts = [attempt for _, _, found in shown for attempt in found.attempts]
    starts = [one.seconds["start"] + one.seconds["other"] for one in attempts if one.steps]
    status = next(status for _, status, _ in shown if status.get("total_steps") and status.get("epochs"))
    waits = [one.wait for _, _, found in shown for one in found.attempts[1:] if one.wait]
    evaluations = [cost for run, _, found in shown if (cost := _evaluation(run, found))]
    assert step is not None
    return Course(
        step,
        statistics.median(evaluations) if evaluations else 0.0,
        statistics.median(starts) if starts else 0.0,
        span_of(waits),
        status["total_steps"] / status["epochs"],
    )


def _step(status: dict[str, Any], found: Spent, batch_size: int, by_rate: bool) -> float | None:
    """Device-seconds of a step of a run."""
    # The first step of each attempt counts as its start.
    made = [] if by_rate else [one for one in found.attempts if one.measured and one.steps > 1]
    if made:
        trained = sum(one.ranks * (one.seconds["train"] + one.seconds["save"]) for one in made)
        return trained / sum(one.steps - 1 for one in made)
    rate = status.get("images_per_second")
    return found.attempts[-1].ranks * batch_size / rate if rate and found.attempts else None


def _with_scatter(step: float, runs: Sequence[Path]) -> Span:
    """A single run's, between what the parts of its own log have shown."""
    rates = [rate for run in runs for rate in once(rates_of, run)]
    if not (span := span_of(rates)):
        return Span(step, step, step)
    return Span(step * span.likely / span.high, step, step * span.likely / span.low)


def rates_of(run: Path, since: float = 0.0) -> list[float]:
    """Images a second over each tenth of a run's log, since a short stall is no other speed. since: unix time."""
    try:
        points, _ = read_points(run / "metrics.jsonl", "images_per_second")
    except OSError:
        return []
    rates = [point.value for point in points if point.value > 0 and (point.time or 0.0) >= since]
    size = max(1, math.ceil(len(rates) / 10))
    return [statistics.harmonic_mean(rates[at : at + size]) for at in range(0, len(rates), size)]


def _evaluation(run: Path, found: Spent) -> float | None:
    """Device-seconds of an evaluation."""
    count = once(_evaluations, run)
    return found.device_seconds["evaluate"] / count if count else None


def _evaluations(run: Path) -> int:
    """How many it has made."""
    try:
        return len(read_points(run / "metrics.jsonl", "val/loss")[0])
    except OSError:
        return 0


def outlook(
    work: Span, course_start: float, wait: Span | None, ranks: int, limit: Limit | None, left: float = 0.0
) -> Outlook:
    """What is to come.

    work: seconds of training on so many ranks, with evaluations and saves. limit: None: an attempt is without end.
    left: seconds that the attempt which trains now has for it. Raises ValueError where an attempt would not train.
    """
    shortest, longest = _trains(limit, course_start) if limit and work.high > left else (math.inf, math.inf)
    by_spread = zip(work, (longest, shortest, shortest), strict=True)
    counts = [_attempts(seconds, trains, left) for seconds, trains in by_spread]
    starts = Span(*(count * course_start for count in counts))
    seconds = work.plus(starts)
    # Those after a first one that is still to start, or after that which trains now.
    queued = [max(0, count - (0 if left else 1)) for count in counts]
    waits = None if wait is None else Span(*(count * each for count, each in zip(queued, wait, strict=True)))
    fewest = _attempts(work.likely, longest, left)
    return Outlook(seconds, seconds.times(ranks), counts[1], fewest, waits if any(queued) else NONE)


def _attempts(seconds: float, trains: float, left: float) -> int:
    """Further ones; of a run that trains beside the present one. trains: seconds of an attempt in which it does."""
    if seconds <= left:
        return 0
    return math.ceil((seconds - left) / trains) if trains < math.inf else int(not left)


def _trains(limit: Limit, start: float) -> tuple[float, float]:
    """Seconds of an attempt in which it trains, of the shortest and the longest. Raises ValueError for none."""
    if (found := limit.least - limit.lead - start) <= 0:
        raise ValueError(
            f"an attempt of {limit.least:.0f} s would not come to train: a start takes {start:.0f} s, and it is told "
            f"to stop {limit.lead:.0f} s before the end (slurm.time, slurm.signal_lead)"
        )
    return found, found + limit.most - limit.least


def overhead(attempts: Sequence[Attempt]) -> float:
    """Seconds of training, with evaluations and saves, for each of training alone; 1 where no attempt tells them."""
    told = [one.seconds for one in attempts if one.measured]
    train = sum(seconds["train"] for seconds in told)
    return sum(seconds[kind] for seconds in told for kind in ("train", "evaluate", "save")) / train if train else 1.0
