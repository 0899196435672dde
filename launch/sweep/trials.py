"""The trials of a sweep: each point as a validated recipe with a name."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.sweep.sweep_types import Sweep
from recipes.errors import RecipeError
from recipes.load import digest, load
from recipes.schema.plugins import PluginFields, refuse_namesakes
from recipes.schema.recipe import Recipe
from recipes.text import labels

MOST_MISTAKES = 20
"""Mistakes of a sweep's trials that are listed; the rest is counted."""


ENOUGH_FAILED = 1000
"""Trials with mistakes after which no more are tried: each takes a millisecond or two."""


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


def to_words(sweep: Sweep, point: Mapping[str, str]) -> list[str]:
    """What `recipes.load` makes the recipe of a point of."""
    return [f"{key}={point[key] if key in point else sweep.fixed[key]}" for key in sweep.order]


def trials(sweep: Sweep, points: Iterable[Mapping[str, str]]) -> tuple[list[Trial], list[str]]:
    """A trial for each point, and notes; points that are the same training make one trial, the first's.

    Raises RecipeError with the distinct mistakes of all points, and in how many points each is; ValueError where
    plugins of theirs are in two files of one name.
    """
    found: dict[str, Trial] = {}
    mistakes: dict[str, int] = {}
    repeated: list[str] = []
    taken: set[str] = set()
    plugins: dict[str, PluginFields] = {}
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
        plugins |= {plugin.path: plugin for plugin in recipe.plugins_named().values()}
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
    refuse_namesakes(plugins.values())
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
