"""Whether a run's accuracy can be held against what its recipe is known to reach, and what that comparison says."""

from __future__ import annotations

from typing import Any, NamedTuple

from recipes.changes import differences
from recipes.keys import variants
from recipes.library import names
from recipes.load import load
from recipes.schema.recipe import Recipe
from recipes.schema.training import Measured
from recipes.text import show

_NO_MATTER = (
    *("seed", "device", "precision", "channels_last", "compile", "deterministic", "max_batch_per_device", "checkpoint"),
    *("eval.every", "eval.batch_size", "max_steps"),
)
"""Keys (and groups) that a reproduction may change beside NOT_TRAINING: where it runs, where the same images are."""


class Judgement(NamedTuple):
    text: str
    """As in `within the expected 90 to 100%`."""
    good: bool | None = None
    """None where nothing can be said."""


def judge(recipe: Recipe, top1: float | None, samples: int | None = None) -> Judgement:
    """What to say of a top-1 (percent) of a run beside what its recipe is known to reach.

    recipe: of the run, resolved. top1: by `recipe.evidence.weights` of the best evaluation or of the last one.
    samples: training images that the data holds, where they are known.
    """
    evidence = recipe.evidence
    if evidence is None or (evidence.band is None and evidence.top1 is None):
        return Judgement("no expected value known")
    if why := changed(recipe, samples):
        return Judgement(f"not comparable with the recipe's: {why}")
    if evidence.band is None or top1 is None:
        return Judgement(f"expected: {evidence.top1:g}%")
    low, high = evidence.band
    where = "below" if top1 < low else "above" if top1 > high else "within"
    return Judgement(f"{where} the expected {low:g} to {high:g}%", top1 >= low)


def with_spread(top1: float, spread: float | None, runs: int | None) -> str:
    """As in 91.25 +-0.14 (5 runs)."""
    return (
        f"{top1:g}" + (f" +-{spread:g}" if spread is not None else "") + (f" ({runs} runs)" if (runs or 1) > 1 else "")
    )


def told(measured: Measured | None) -> str:
    """What was measured with this program, in words."""
    if measured is None:
        return "never measured here"
    if measured.top1 is None:
        return measured.command
    figure = with_spread(measured.top1, measured.spread, measured.seeds)
    where = ", ".join(filter(None, (measured.card, measured.commit and f"commit {measured.commit}")))
    return f"{figure} by {measured.command}" + (f", {where}" if where else "")


def changed(recipe: Recipe, samples: int | None = None) -> str:
    """In what a run differs from the recipe that its evidence is of, in words; empty: in nothing that matters."""
    found = []
    if recipe.max_steps is not None:
        found.append(f"max_steps={recipe.max_steps}")
    stating = (recipe.evidence and recipe.evidence.recipe) or recipe.name
    found += [f"{key}={show(now)}" for key, now in _what_differs(recipe, stating).items()]
    stated = _shipped(stating, recipe).data.train_samples
    if samples is not None and stated is not None and samples != stated:
        found.append(f"{samples:,} training images, not {stated:,}")
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more


def what_differs(recipe: Recipe) -> dict[str, Any]:
    """The keys, and their values, in which a recipe differs from the shipped one of its name, but for those that do not
    matter for what it reaches."""
    return _what_differs(recipe, recipe.name)


def _what_differs(recipe: Recipe, name: str) -> dict[str, Any]:
    original = _shipped(name, recipe)
    changes = differences(original, recipe)
    return {key: now for key, (_, now) in changes.items() if not _is_free(key, original)}


def _shipped(name: str, otherwise: Recipe) -> Recipe:
    return load([f"recipe={name}"]).recipe if name in names() else otherwise


def _is_free(key: str, original: Recipe) -> bool:
    # Another source may hold the same images, where their number tells whether it does.
    sources: Any = variants()["data"][1].values()
    free = [*_NO_MATTER, *(f"data.{name}" for source in sources for name in source.places)]
    free += ["data.source"] if original.data.train_samples else []
    return any(key == name or key.startswith(f"{name}.") for name in free)
