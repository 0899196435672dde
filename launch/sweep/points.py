"""Sweeps: from the words of a command line to trials, each a validated recipe. `wandb_sweep` reads W&B's own files.

A word gives one value or several, as `sweep_values` reads them: `optimizer.lr=0.1,0.2 seed=range(0,3)`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from random import Random
from statistics import NormalDist
from typing import Literal

from launch.sweep.grammar import expand, number_text
from recipes.errors import COMMAND_LINE, RecipeError
from recipes.keys import takes_text
from recipes.load import digest, load, names, split_argument
from recipes.schema.recipe import NOT_TRAINING, Recipe
from recipes.text import labels

MOST_MISTAKES = 20
"""Mistakes of a sweep's trials that are listed; the rest is counted."""
ENOUGH_FAILED = 1000
"""Trials with mistakes after which no more are tried: each takes a millisecond or two."""


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


@dataclass(frozen=True)
class Trial:
    """One point of a sweep."""

    name: str
    """Short, safe as a file's name, the same whenever the same parameters are swept: `lr=0.5,seed=1-3f9a1c`."""
    point: dict[str, str]
    """Swept key -> text."""
    words: tuple[str, ...]
    """What `recipes.load` makes the recipe of."""
    recipe: Recipe
    digest: str
    """`recipes.load.digest`: what defines the training."""


def from_words(words: Iterable[str]) -> Sweep:
    """The grid that a command line stands for. Raises RecipeError with all mistakes at once."""
    given, notes = read_words(words)
    return Sweep("grid", *parted(given), notes=notes)


def parted(
    given: Mapping[str, Values | Distribution],
) -> tuple[dict[str, str], dict[str, Values | Distribution], tuple[str, ...]]:
    """What is fixed, what is swept, and the order of the keys. Raises RecipeError where no recipe is among them."""
    if "recipe" not in given:
        raise RecipeError(f"give recipe=NAME, or several as in recipe=A,B; there are: {', '.join(names())}")
    alone = {key: v.texts[0] for key, v in given.items() if isinstance(v, Values) and len(v.texts) == 1}
    return alone, {key: values for key, values in given.items() if key not in alone}, tuple(given)


def read_words(words: Iterable[str]) -> tuple[dict[str, Values], tuple[str, ...]]:
    """The values that each key is given on a command line, and notes. Raises RecipeError with all mistakes at once."""
    given: dict[str, Values] = {}
    notes, mistakes = [], []
    for word in words:
        try:
            key, text = split_argument(word)
            texts = expand(key, text)
            values = tuple(dict.fromkeys(texts))
            if len(values) > 1:
                refuse_without_effect(key, f"{key}={text} ({COMMAND_LINE})")
            if key in given and (key == "recipe" or len(values) > 1 or len(given[key].texts) > 1):
                raise RecipeError(f"{key} is given twice: give all its values at once, as in {key}=A,B")
        except RecipeError as error:
            mistakes.append(str(error))
            continue
        if len(values) < len(texts):
            notes.append(f"{key}={text}: a value is given twice and tried once")
        given.pop(key, None)
        given[key] = Values(values)
    if mistakes:
        raise RecipeError("\n".join(dict.fromkeys(mistakes)))
    return given, tuple(notes)


def refuse_without_effect(key: str, what: str) -> None:
    """Raise RecipeError for a key whose values would all make the same training."""
    if key.partition(".")[0] in NOT_TRAINING:
        quoted = ", or in quotes if the comma is text, as in '\"a, b\"'" if takes_text(key) else ""
        raise RecipeError(f"{what}: {key} does not change the training; give one value{quoted}")


# Points: one value for each swept key


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


# Trials


def to_words(sweep: Sweep, point: Mapping[str, str]) -> list[str]:
    """What `recipes.load` makes the recipe of a point of."""
    return [f"{key}={point[key] if key in point else sweep.fixed[key]}" for key in sweep.order]


def trials(sweep: Sweep, points: Iterable[Mapping[str, str]]) -> tuple[list[Trial], list[str]]:
    """A trial for each point, and notes; points that are the same training make one trial, the first's.

    Raises RecipeError with the distinct mistakes of all points, and in how many points each is.
    """
    found: dict[str, Trial] = {}
    mistakes: dict[str, int] = {}
    repeated: list[str] = []
    taken: set[str] = set()
    number = failed = 0
    for point in points:
        number += 1
        words = to_words(sweep, point)
        try:
            recipe = load(words, sweep.origins).recipe
        except RecipeError as error:
            for line in dict.fromkeys(str(error).splitlines()):
                mistakes[line] = mistakes.get(line, 0) + 1
            failed += 1
            if failed == ENOUGH_FAILED:
                break
            continue
        content = digest(recipe)
        if content in found:
            repeated.append(f"{_shown(point)} is the same training as {_shown(found[content].point)}")
            continue
        name = trial_name(point, recipe, content)
        name = name if name not in taken else trial_name(point, recipe, content, digits=len(content))
        taken.add(name)
        found[content] = Trial(name, dict(point), tuple(words), recipe, content)
    if mistakes:
        raise RecipeError(_listed(mistakes, f"the first {number}" if failed == ENOUGH_FAILED else str(number)))
    more = f", and {len(repeated) - 1} more of the kind" if len(repeated) > 1 else ""
    return [*found.values()], [f"{repeated[0]}: one trial{more}"] if repeated else []


def _shown(point: Mapping[str, str]) -> str:
    return " ".join(f"{key}={text}" for key, text in point.items()) or "the recipe"


def _listed(mistakes: dict[str, int], number: str) -> str:
    lines = [
        line if number == "1" else f"{line} (in {count} of {number} trials)"
        for line, count in itertools.islice(mistakes.items(), MOST_MISTAKES)
    ]
    more = len(mistakes) - len(lines)
    return "\n".join([*lines, f"... and {more} more mistakes"] if more else lines)


def trial_name(point: Mapping[str, str], recipe: Recipe, content: str, digits: int = 6) -> str:
    """`lr=0.5,seed=1-3f9a1c` of the swept values and the first digits of the digest; at most 100 characters."""
    short = labels(point)
    parts = [f"{_safe(short[key])}={_slug(key, text)}" for key, text in point.items()] or [_safe(recipe.name)]
    return f"{','.join(parts)[: 99 - digits]}-{content[:digits]}"


def _slug(key: str, text: str) -> str:
    if key == "recipe":
        return _safe(Path(text).stem)
    if re.fullmatch(r"-?\d+\.\d+(e[-+]?\d+)?", text) and len(text) > 7:
        text = f"{float(text):.4g}"
    return _safe(text)[:32]


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text).strip("_") or "_"
