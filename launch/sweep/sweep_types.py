"""What a sweep is: what is fixed, what is swept and how, by what it is judged."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Values:
    """The values of a parameter, each as the text of an override."""

    texts: tuple[str, ...]
    probabilities: tuple[float, ...] | None = None
    """Of each value under random search, 1 in all; None: all the same."""


@dataclass(frozen=True)
class Distribution:
    """A numeric parameter that is drawn, not listed."""

    kind: Literal["uniform", "int_uniform", "normal", "beta"]
    low: float = -math.inf
    high: float = math.inf
    """Bounds of uniform and int_uniform, both inclusive, of the value itself even where log is true."""
    log: bool = False
    """The value's natural logarithm has this distribution."""
    step: float | None = None
    """Round what is drawn to a multiple of it, which may be half a step outside of the bounds."""
    mu: float = 0.0
    sigma: float = 1.0
    """Mean and standard deviation of normal (of the logarithm, where log is true)."""
    a: float = 1.0
    b: float = 1.0
    """Shape of beta."""


@dataclass(frozen=True)
class HalvingRule:
    """Early stopping: of the trials that reach a rung, the best 1/eta go on (Li et al. 2018, arXiv:1603.06560)."""

    rungs: tuple[int, ...]
    """Number of evaluations after which a trial is judged, ascending; an evaluation is `eval.every` epochs."""
    eta: float = 3.0
    strict: bool = False
    """Judge by the value at the rung; else by the best value up to it."""


@dataclass(frozen=True)
class Sweep:
    """What to try, and how."""

    method: Literal["grid", "random", "bayes"]
    fixed: dict[str, str]
    """Key -> text of what is the same in all trials."""
    parameters: dict[str, Values | Distribution]
    """Key -> what is swept."""
    order: tuple[str, ...]
    """All keys in the order they were given in, which decides what overrides what."""
    metric: str | None = None
    """What tells a good trial, of `recipes.metric.METRICS`; None: the recipe's own `eval.metric`."""
    early_stop: HalvingRule | None = None
    run_cap: int | None = None
    """Most trials."""
    name: str | None = None
    description: str | None = None
    origins: dict[str, str] = field(default_factory=dict)
    """Key -> file and line, for those that are not from the command line."""
    notes: tuple[str, ...] = ()
    """What the user should know of how the sweep was read."""
