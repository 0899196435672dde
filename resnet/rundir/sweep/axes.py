"""How a swept parameter's values stand along an axis, for every picture of a sweep."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from resnet.rundir.sweep.ranking import as_numbers
from resnet.rundir.sweep.result_types import shortened

DISCRETE = 12
"""Most values of a parameter of which each has a tick and a mean."""
LOG_DECADES, LOG_MEDIAN = 1.5, 0.25
"""An axis is logarithmic over so many decades, if half of the values lie in this first share of it."""
LEAST_GAP = 0.12
"""Share of an axis between two values; numbers nearer than that stand side by side as words do."""


class Axis(NamedTuple):
    """Where a parameter's values stand."""

    positions: list[float]
    """Of each trial."""
    ticks: dict[float, str]
    """Position -> value, for discrete values."""
    log: bool
    ordered: bool
    """Whether a line from value to value has a meaning."""


def axis_of(texts: Sequence[str], drawn: bool = False, log: bool = False) -> Axis:
    """The axis of a parameter by the values of the trials, one each.

    drawn: from a distribution, so that no value stands for itself; log: evenly in the logarithm.
    """
    numbers = as_numbers(texts)
    values = dict.fromkeys(texts)
    if numbers is not None and drawn:
        return Axis(numbers, {}, log and min(numbers) > 0, True)
    if numbers is not None:
        written = dict(sorted(zip(numbers, texts, strict=True)))
        distinct, values = [*written], dict.fromkeys(written.values())
        low, spread = distinct[0], distinct[-1] - distinct[0]
        log = spans(distinct, 10**LOG_DECADES) and statistics.median_low(distinct) - low < LOG_MEDIAN * spread
        if len(distinct) > DISCRETE:
            return Axis(numbers, {}, log, True)
        places = [math.log(number) if log else number for number in distinct]
        if all(after - before >= LEAST_GAP * (places[-1] - places[0]) for before, after in itertools.pairwise(places)):
            return Axis(numbers, {number: shortened(text) for number, text in written.items()}, log, True)
        texts = [written[number] for number in numbers]
    index = {text: float(number) for number, text in enumerate(values)}
    ticks = {number: shortened(text) for text, number in index.items()}
    return Axis([index[text] for text in texts], ticks, False, numbers is not None)


def spans(values: Sequence[float], ratio: float) -> bool:
    """Whether values are all above 0 and the largest is more than so many times the smallest."""
    return min(values) > 0 and max(values) / min(values) > ratio
