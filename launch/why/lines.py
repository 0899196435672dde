"""The lines of a run's log on its training, each with the steps and the seconds that it is about."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from launch.why.facts import Facts
from resnet.rundir.files import number


class Line(NamedTuple):
    """One line on training."""

    begin: int
    """Steps that were done before those it is about."""
    step: int
    """Steps done in the end."""
    seconds: float
    """That these steps took; 0 where the line does not tell."""
    row: Mapping[str, Any]

    def value(self, key: str) -> float | None:
        return number(self.row.get(key))

    @property
    def rate(self) -> float | None:
        """Images a second of the time in which images were there."""
        rate, wait = self.value("images_per_second"), self.value("data_wait") or 0.0
        return None if rate is None or wait >= 1 else rate / (1 - wait)


def training_lines(rows: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Of all attempts, in their order."""
    found: list[Line] = []
    for row in rows:
        step = number(row.get("step"))
        if "train/loss" not in row or step is None:
            continue
        begin = found[-1].step if found else 0
        found.append(Line(begin, int(step), _seconds(row, found[-1].row if found else {}), row))
    return found


def lately(facts: Facts, most: int) -> list[Line]:
    """The last lines of the newest attempt, without its first, in which kernels are chosen and workers begin."""
    first_step = ((facts.provenance.get("attempts") or [{}])[-1]).get("first_step") or 0
    return [line for line in training_lines(facts.metrics) if line.step > first_step][1:][-most:]


def share(lines: Sequence[Line], key: str) -> float | None:
    """The mean of a key over the time that lines are about; None where fewer than half of them have it."""
    told = [(value, line.seconds or 1.0) for line in lines if (value := line.value(key)) is not None]
    if not told or 2 * len(told) < len(lines):
        return None
    return sum(value * seconds for value, seconds in told) / sum(seconds for _, seconds in told)


def median(lines: Sequence[Line], key: str) -> float | None:
    values = [value for line in lines if (value := line.value(key)) is not None]
    return statistics.median(values) if values else None


def _seconds(row: Mapping[str, Any], before: Mapping[str, Any]) -> float:
    rate, samples = number(row.get("images_per_second")), number(row.get("samples"))
    if not rate or samples is None:
        return 0.0
    return max(0.0, samples - (number(before.get("samples")) or 0.0)) / rate
