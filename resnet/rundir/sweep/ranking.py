"""A sweep's settings ranked, how sure that is, which hyperparameter mattered, and when all will have ended."""

from __future__ import annotations

import bisect
import math
import statistics
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from recipes.metric import METRICS, cost
from recipes.text import labels
from resnet.rundir.sweep.result_types import (
    REPEATED,
    WAITING,
    Comparison,
    Setting,
    Share,
    Trial,
    figure,
    repeated,
    shortened,
)

BINS, TRIALS_PER_BIN = 4, 3
"""Into how many groups a parameter's values are put where almost every trial has another, and of how many trials."""
CONFIDENCE = 0.95
LABEL_MOST = 40
"""Characters of a setting in a sentence."""


def ranked(trials: Sequence[Trial], sweep: Mapping[str, Any]) -> list[Setting]:
    """The settings, best first: those with a finished trial, then those with a value so far, then the others."""
    goal = sweep["goal"]
    members: dict[Hashable, list[Trial]] = {}
    for trial in trials:
        # A search that has not chosen a point yet has left it empty.
        if trial.point or not sweep["parameters"]:
            # A search may come to the same point twice, which is no second seed.
            alike = tuple(_setting_of(trial.point).items()) if repeated(trial.point) else trial.name
            members.setdefault(alike, []).append(trial)
    settings = [_setting(group, goal) for group in members.values()]
    # Stable: of those that are level, the one that was sent first.
    return sorted(settings, key=lambda one: (not one.done, one.value is None, cost(one.value, goal)))


def _setting_of(point: Mapping[str, str]) -> dict[str, str]:
    return {key: text for key, text in point.items() if key not in REPEATED}


def _setting(group: Sequence[Trial], goal: str) -> Setting:
    finished = [trial for trial in group if trial.counts]
    shown = finished or [trial for trial in group if trial.value is not None]
    values = [trial.value for trial in shown if trial.value is not None]
    epochs = [trial.best_epoch for trial in shown if trial.best_epoch is not None]
    best = min(finished, key=lambda trial: cost(trial.value, goal), default=None)
    return Setting(
        point=_setting_of(group[0].point),
        value=statistics.fmean(values) if values else None,
        spread=statistics.stdev(values) if len(finished) > 1 else None,
        low=min(values, default=None),
        high=max(values, default=None),
        done=len(finished),
        states=dict(Counter(trial.state for trial in group)),
        best_epoch=statistics.fmean(epochs) if epochs else None,
        seconds=statistics.fmean(trial.seconds for trial in shown or group),
        gpu_hours=sum(trial.gpu_hours for trial in group),
        trials=tuple(trial.name for trial in group),
        best_trial=best.name if best else None,
    )


def compare(settings: Sequence[Setting], metric: str, trial: str = "seed") -> Comparison | None:
    """How sure it is that the first setting is better than the second, by Welch's t: spreads need not be the same.

    trial: what one of a setting is called, see `repeated`.
    """
    pair = [(one, one.value) for one in settings[:2] if one.done and one.value is not None]
    if len(pair) < 2:
        return None
    (first, high), (second, low) = pair
    difference, points = abs(high - low), " points" if METRICS[metric].unit == "%" else ""
    one, other = _told_apart(first, second)
    ahead = f"{one} is ahead of {other} by {figure(difference, metric)}{points}"
    if difference == 0:
        ahead = f"{one} and {other} are level"
    alone = [name for name, setting in ((one, first), (other, second)) if setting.spread is None]
    if alone:
        why = f"one {trial} of {alone[0]}" if len(alone) == 1 else f"one {trial} each"
        return Comparison(difference, None, f"{ahead}; {why}: no spread is known")
    errors = [((setting.spread or 0.0) ** 2 / setting.done, setting.done - 1) for setting in (first, second)]
    variance = sum(error for error, _ in errors)
    if variance == 0:
        return Comparison(difference, 0.0, f"{ahead}; neither varies over its {trial}s")
    freedom = variance**2 / sum(error**2 / number for error, number in errors)
    margin = t_quantile(freedom) * math.sqrt(variance)
    interval = f"{figure(difference, metric)} ± {figure(margin, metric)}{points} ({CONFIDENCE:.0%})"
    if difference > margin:
        return Comparison(difference, margin, f"{one} beats {other} by {interval}")
    return Comparison(difference, margin, f"{one} and {other} cannot be told apart by these {trial}s: {interval}")


def _told_apart(first: Setting, second: Setting) -> tuple[str, str]:
    """Names for two settings, of what they differ in; by rank where that is long."""
    short = labels(first.point)
    keys = [key for key in first.point if first.point[key] != second.point.get(key)]
    names = [
        " ".join(f"{short[key]}={shortened(setting.point.get(key, ''))}" for key in keys) for setting in (first, second)
    ]
    return (names[0], names[1]) if names[0] != names[1] and max(map(len, names)) <= LABEL_MOST else ("#1", "#2")


@cache
def t_quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """The t that |T| stays below with this probability; T has Student's distribution, freedom is 1 or more."""
    # Not scipy.stats.t: a dependency for one number, which takes 1.3 ms here; statistics has no Student's t.
    # P(|T| < sqrt(freedom) tan(x)) is an integral of cos^(freedom - 1) from 0 to x, smooth enough for Simpson's rule.
    freedom, intervals = min(freedom, 1000.0), 200
    scale = 2 * math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    low, high = 0.0, math.pi / 2
    for _ in range(45):
        middle = (low + high) / 2
        width = middle / intervals
        heights = [math.cos(k * width) ** (freedom - 1) for k in range(intervals + 1)]
        area = (heights[0] + heights[-1] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2])) * width / 3
        low, high = (middle, high) if scale * area < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def importance(trials: Sequence[Trial], keys: Sequence[str]) -> list[Share]:
    """What each parameter explains, seed or fold last; empty for fewer than three values, or where all are the same."""
    finished = [trial for trial in trials if trial.counts]
    values = [trial.value for trial in finished if trial.value is not None]
    number, total = len(values), _squares(values)
    # Values that are all the same differ by rounding.
    if number < 3 or total <= 1e-18 * sum(value**2 for value in values):
        return []
    found = []
    for key in keys:
        if key in REPEATED:
            continue
        groups = _grouped(_groups([trial.point.get(key, "") for trial in finished]), values)
        if 2 <= len(groups) < number:
            share = 1 - sum(map(_squares, groups)) / total
            found.append(Share(key, max(0.0, share), (len(groups) - 1) / (number - 1), len(groups)))
    found.sort(key=lambda share: -share.share)
    if again := next((key for key in REPEATED if key in keys), None):
        groups = _grouped([tuple(_setting_of(trial.point).items()) for trial in finished], values)
        if len(groups) < number:
            found.append(Share(again, min(1.0, sum(map(_squares, groups)) / total), None, len(groups)))
    return found


def _squares(values: Sequence[float]) -> float:
    """Sum of the squares of the distances from the mean."""
    mean = sum(values) / max(1, len(values))
    return sum((value - mean) ** 2 for value in values)


def _groups(texts: Sequence[str]) -> Sequence[Hashable]:
    """The group of each trial by a parameter's value; of numbers that hardly repeat, the quantile that they are in."""
    numbers, distinct = as_numbers(texts), len(set(texts))
    if numbers is None or distinct <= BINS or 2 * distinct <= len(texts):
        return texts
    ordered, bins = sorted(numbers), min(BINS, len(texts) // TRIALS_PER_BIN)
    return [bisect.bisect_left(ordered, number) * bins // len(ordered) for number in numbers]


def _grouped(groups: Iterable[Hashable], values: Iterable[float]) -> list[list[float]]:
    found: dict[Hashable, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        found.setdefault(group, []).append(value)
    return list(found.values())


def as_numbers(texts: Iterable[str]) -> list[float] | None:
    """The values as numbers; None where one of them is none."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def eta(trials: Sequence[Trial]) -> float | None:
    """Seconds to the end, if as many trials run at a time as now and the rest take as long as those that ended."""
    running = [trial for trial in trials if trial.state == "running"]
    waiting = sum(trial.state in WAITING for trial in trials)
    ended = [trial.seconds for trial in trials if trial.state in ("finished", "pruned") and trial.seconds]
    usual = statistics.fmean(ended) if ended else None
    left = [usual and max(0.0, usual - trial.seconds) if trial.eta_s is None else trial.eta_s for trial in running]
    known = [seconds for seconds in left if seconds is not None]
    if not running or len(known) < len(left) or (waiting and usual is None):
        return None
    return max(*known, (sum(known) + waiting * (usual or 0)) / len(running), 0.0)
