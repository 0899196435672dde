"""What an evaluation measures: names, units, and which of two values is better. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """A figure of the validation images."""

    title: str
    unit: str
    goal: Literal["maximize", "minimize"]

    @property
    def label(self) -> str:
        return f"{self.title} {self.unit}".strip()


class _Metrics(dict[str, Metric]):
    """With one of the user's own (`plugins.metrics`) for any other name, which tells which value is better."""

    def __missing__(self, name: str) -> Metric:
        return Metric(name, "", "minimize" if name.endswith(("loss", "error")) else "maximize")


METRICS = _Metrics(
    top1=Metric("top-1", "%", "maximize"),
    top5=Metric("top-5", "%", "maximize"),
    loss=Metric("val loss", "", "minimize"),
)
"""By their names in a recipe (`eval.metric`); metrics.jsonl has them as val/top1 and so on."""


def cost(value: float | None, goal: str) -> float:
    """A number that is smaller for a better value; infinite where there is none, or it is not a number."""
    if value is None or math.isnan(value):
        return math.inf
    return -value if goal == "maximize" else value


def is_better(metric: str, value: float, than: float | None) -> bool:
    """Whether a value of a metric is better than another; any is better than none, and than what is no number."""
    goal = METRICS[metric].goal
    return cost(than, goal) == math.inf or cost(value, goal) < cost(than, goal)


def best_of(values: Iterable[float], goal: str) -> float | None:
    """The best of the finite values; None where there is none."""
    return min((value for value in values if math.isfinite(value)), key=lambda value: cost(value, goal), default=None)
