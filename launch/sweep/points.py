"""Points of a sweep: one value for each swept key, from a grid or drawn at random."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from decimal import Decimal
from random import Random
from statistics import NormalDist

from launch.sweep.grammar import number_text
from launch.sweep.sweep_types import Distribution, Sweep, Values


def size(sweep: Sweep) -> int:
    """Points of the grid, no more than `run_cap`."""
    number = math.prod(len(values.texts) for values in sweep.parameters.values() if isinstance(values, Values))
    return min(number, sweep.run_cap or number)


def grid(sweep: Sweep) -> Iterator[dict[str, str]]:
    """All combinations, the last key's values changing fastest, no more than `run_cap`."""
    assert not any(isinstance(values, Distribution) for values in sweep.parameters.values())
    texts = [values.texts for values in sweep.parameters.values() if isinstance(values, Values)]
    for point in itertools.islice(itertools.product(*texts), sweep.run_cap):
        yield dict(zip(sweep.parameters, point, strict=True))


def sample(sweep: Sweep, seed: int, number: int) -> dict[str, str]:
    """The point of trial `number` of a random search: it depends on seed, number and each key's own values alone."""
    return {key: _draw(values, Random(f"{seed}-{number}-{key}")) for key, values in sweep.parameters.items()}


def _draw(values: Values | Distribution, random: Random) -> str:
    if isinstance(values, Values):
        return random.choices(values.texts, values.probabilities)[0]
    if values.kind == "int_uniform":
        return str(random.randint(int(values.low), int(values.high)))
    if values.kind == "beta":
        return text_of(values, random.betavariate(values.a, values.b))
    if values.kind == "normal":
        # no finite value has the probability 0 below it
        drawn = values.mu + values.sigma * NormalDist().inv_cdf(random.random() or 2**-54)
    else:
        low, high = (math.log(bound) if values.log else bound for bound in (values.low, values.high))
        drawn = low + (high - low) * random.random()
    return text_of(values, math.exp(drawn) if values.log else drawn)


def text_of(distribution: Distribution, value: float) -> str:
    """A value as text: a multiple of the step where there is one, else of 8 digits and within the bounds."""
    if distribution.kind == "int_uniform":
        return str(round(value))
    if distribution.step is not None:
        return number_text(round(value / distribution.step) * Decimal(repr(distribution.step)))
    return number_text(min(max(float(f"{value:.8g}"), distribution.low), distribution.high))


def search_bounds(distribution: Distribution) -> tuple[float, float]:
    """Finite bounds for a search that needs them: three standard deviations about the mean of normal, 0 to 1 of beta.

    They are of the value before it is rounded to the step: a search suggests within them, `text_of` rounds.
    """
    if distribution.kind == "beta":
        return 0.0, 1.0
    if distribution.kind == "normal":
        low, high = (distribution.mu + sign * 3 * distribution.sigma for sign in (-1, 1))
        return (math.exp(low), math.exp(high)) if distribution.log else (low, high)
    return distribution.low, distribution.high
