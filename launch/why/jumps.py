"""Where a curve jumps, and where it goes up for good: of plain numbers, so that noise can be told from a spike."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

BEFORE, WINDOW = 5, 20
"""Points before one that are needed, and at most used, to say what was usual."""
SPREADS = 10.0
"""Of the usual spread (1.4826 * the median distance from the median, which outliers do not widen) that a jump exceeds.
Means over a line's images are near to normal, of which 10 never comes; mixing and small batches have longer tails."""
OF_USUAL, OF_TOP = 0.25, 0.1
"""A jump exceeds these shares too, of what was usual and of the curve's height in the beginning: less does no harm."""
HARD_IMAGES = 2.5
"""And this many times the height over the root of a point's images, which a few images that are all wrong may make."""
OF_LEARNT = 0.3
"""And a lasting rise this share of what had been learnt."""
BACK = 0.3
"""A jump is over when less than this share of it is left."""


class Jump(NamedTuple):
    """A point that is far above those before it."""

    place: int
    usual: float
    """Median of the points before."""
    back: int | None
    """Points until the curve is back, 1 if the next one is; None: it never is."""


def first_jump(
    values: Sequence[float], images: Sequence[float], top: float, excused: Sequence[bool] = ()
) -> Jump | None:
    """The first jump of a curve of losses.

    values: means, each over so many `images`; inf for what is no number. top: the loss of a network that knows nothing,
    or that of the beginning. excused: points at which the curve may jump, as where the learning rate starts again.
    """
    of_a_point = statistics.median(images) if images else 1.0
    for place in range(BEFORE, len(values)):
        before = [value for value in values[max(0, place - WINDOW) : place] if math.isfinite(value)]
        if len(before) < BEFORE or (excused and excused[place]):
            continue
        usual = statistics.median(before)
        # A short line at an epoch's end scatters more than the others.
        short = math.sqrt(max(1.0, of_a_point / max(images[place], 1.0)))
        spread = short * min(statistics.median(abs(value - usual) for value in before), _from_point_to_point(before))
        # Of a curve that rises little by little no point is a jump.
        # Of few points the spread may be small by chance.
        images_of_all = images[place] / (1 + BEFORE / len(before)) ** 2
        if values[place] - max(usual, before[-1]) > _least(spread, usual, images_of_all, top):
            return Jump(place, usual, _back(values, place, usual))
    return None


def _least(spread: float, usual: float, images: float, top: float) -> float:
    """What a point has to be above the usual. spread: the median distance from it."""
    hard = HARD_IMAGES * top / math.sqrt(max(images, 1.0))
    return max(SPREADS * 1.4826 * spread, OF_USUAL * abs(usual), OF_TOP * top, hard)


def _from_point_to_point(values: Sequence[float]) -> float:
    """The median distance from the usual as neighbours tell it, where the curve falls or rises all the time."""
    steps = [abs(after - before) for before, after in itertools.pairwise(values) if math.isfinite(after - before)]
    return statistics.median(steps) / math.sqrt(2) if steps else 0.0


def _back(values: Sequence[float], place: int, usual: float) -> int | None:
    limit = usual + BACK * (values[place] - usual)
    for later in range(place + 1, len(values)):
        if values[later] <= limit:
            return later - place
    return None


class Rise(NamedTuple):
    """A curve that has left its lowest level for good."""

    place: int
    """Of the lowest level's last point."""
    low: float
    high: float
    """Medians then, and at the end."""


def lasting_rise(values: Sequence[float], images: Sequence[float], top: float) -> Rise | None:
    """Where a curve of losses begins to rise without an end, in steps too small for a jump.

    The median of five points at the end is above the lowest one by as much as a jump would be, and by a share of what
    had been learnt.
    """
    if len(values) < 4 * BEFORE:
        return None
    levels = [statistics.median(values[place : place + BEFORE]) for place in range(len(values) - BEFORE + 1)]
    lowest = min(range(len(levels)), key=levels.__getitem__)
    low, high = levels[lowest], levels[-1]
    spread = _from_point_to_point(values)
    least = _least(spread, low, BEFORE * statistics.median(images), top)
    if high - low > max(least, OF_LEARNT * (top - low)):
        return Rise(lowest + BEFORE - 1, low, high)
    return None
