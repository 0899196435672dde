"""Why a run's result cannot be right, or is not what its recipe is known to reach."""

from __future__ import annotations

from launch.why.cause import Cause
from launch.why.facts import Facts
from launch.why.mends import anew
from launch.why.missed import (
    APART,
    Result,
    behind,
    cause,
    changes_of,
    check_data,
    is_another,
    is_far,
    missed,
    put_back,
    result_of,
    told,
)
from launch.why.steps import plan_of
from recipes.plan import effective_decay
from resnet.rundir.files import number

GUESSING, LEARNT = (1.5, 0.1), (3.0, 0.3)
"""Times the accuracy of guessing, and share of what is beyond it, up to which (of both) a network has learnt nothing;
and from which on it has learnt something. Of a thousand classes 2% is much, of two 60% is little."""
TOO_GOOD = 1.0
"""Percent points above the band, from which on an accuracy is too good: bands are of several runs."""
LEAST_IMAGES = 20
"""Validation images, of fewer of which 100% is luck, as guessing is."""
INITIAL = 0.1
"""Share of the average of the weights that may still be of the network before training."""
MIXED_UP = 0.5
"""Of the images of a class, and of the classes: that so many are taken for one and the same other is no confusion."""


def find(facts: Facts) -> list[Cause]:
    result = result_of(facts)
    if facts.recipe is None or result is None:
        return []
    for explain in (_classes_mixed_up, _average_lags, _learnt_nothing, _too_good, missed, behind):
        if found := explain(facts, result):
            return [found]
    return []


def _classes_mixed_up(facts: Facts, result: Result) -> Cause | None:
    """Whether classes are learnt, but taken for one another as by two lists in different orders."""
    matrix, classes = facts.evaluation.get("confusion"), facts.evaluation.get("classes") or []
    if not matrix or len(classes) < 3:
        return None
    taken = [max(range(len(row)), key=row.__getitem__) for row in matrix]
    moved = [at for at, to in enumerate(taken) if to != at and matrix[at][to] > MIXED_UP * sum(matrix[at]) > 0]
    # Where all are taken for one class nothing has been learnt.
    if len(moved) < MIXED_UP * len(classes) or len({taken[at] for at in moved}) < 0.8 * len(moved):
        return None
    examples = ", ".join(f"{classes[at]} for {classes[taken[at]]}" for at in moved[:3])
    share = sum(matrix[at][taken[at]] for at in moved) / sum(sum(matrix[at]) for at in moved)
    return cause(
        "class_order",
        f"{len(moved)} of {len(classes)} classes are each taken for one other: validation's labels are in another "
        "order than training's",
        (
            f"evaluation.json: top-1 {result.top1:.2f}%; {examples} ({share:.0%} of these classes' images)",
            f"metrics.jsonl: train/top1 {_top1_in_training(facts) or 0:.1f}%, so that the classes are learnt",
        ),
        check_data(facts),
        0.97,
    )


def _average_lags(facts: Facts, result: Result) -> Cause | None:
    """Whether the average of the weights, which is evaluated, is still that of the beginning."""
    recipe, plan, learnt = facts.recipe, plan_of(facts), _top1_in_training(facts)
    if recipe is None or plan is None or recipe.ema is None or learnt is None or learnt < result.top1 + APART:
        return None
    steps = result.step - round(recipe.ema.start_epoch * plan.steps_per_epoch)
    decay = effective_decay(recipe.ema, recipe.batch_size, recipe.epochs)
    left = decay ** (max(steps, 0) / recipe.ema.every)
    if left < INITIAL or steps <= 0:
        return None
    fitting = 1 - 10 * recipe.ema.every / max(plan.end_step, 20)
    return cause(
        "average_lags",
        f"what is evaluated, the average of the weights, is still {left:.0%} of the network before training",
        (
            f"recipe.yaml: ema.decay={recipe.ema.decay:g} forgets over {recipe.ema.every / (1 - decay):,.0f} steps, of "
            f"which {steps:,} were made",
            f"metrics.jsonl: val/top1 {result.top1:.2f}%, train/top1 {learnt:.1f}%",
        ),
        anew(facts, f"ema.decay={fitting:.4g}"),
        0.95,
    )


def _learnt_nothing(facts: Facts, result: Result) -> Cause | None:
    """Whether it is as good as guessing: in validation alone, or in training, too."""
    guessed, learnt = _guessed(facts), _top1_in_training(facts)
    if (
        guessed is None
        or result.top1 > _beyond(guessed, *GUESSING)
        or not is_far(facts, result)
        or facts.recipe is None
    ):
        return None
    if learnt is not None and learnt > _beyond(guessed, *LEARNT):
        augment = facts.recipe.augment
        sizes = f"train_size {augment.train_size}, val_resize {augment.val_resize}, val_size {augment.val_size}"
        return cause(
            "validation",
            "what is learnt in training is of no use in validation, whose images or labels must be others",
            (
                f"metrics.jsonl: train/top1 {learnt:.1f}%, val/top1 {result.top1:.2f}%; guessing gives {guessed:.2f}%",
                f"recipe.yaml: data.val={facts.recipe.data.val}; augment: {sizes}",
            ),
            check_data(facts),
        )
    changes = changes_of(facts)
    losses = [value for row in facts.metrics if (value := number(row.get("train/loss"))) is not None]
    # A network of one's own says nothing of why.
    keys = [key for key in changes if key.startswith(("optimizer.", "schedule.", "batch_size", "grad_clip"))]
    verb = "is" if len(keys) == 1 else "are"
    why = f": {told({key: changes[key] for key in keys})} {verb} not the recipe's" if keys else ": look at its images"
    return cause(
        "learns_nothing",
        f"it has learnt nothing, and only guesses, in training as well{why}",
        (
            f"metrics.jsonl: val/top1 {result.top1:.2f}%, guessing gives {guessed:.2f}%",
            f"metrics.jsonl: train/loss {losses[0]:.3g} in the beginning, {losses[-1]:.3g} in the end"
            if losses
            else "",
            f"recipe.yaml: other than in the recipe: {told(changes)}" if changes else "",
        ),
        anew(facts, *put_back(facts, keys)) if keys else check_data(facts),
    )


def _too_good(facts: Facts, result: Result) -> Cause | None:
    """Whether it is better than it can be: mostly the same images are on both sides."""
    recipe, images = facts.recipe, number(facts.evaluation.get("samples")) or 0
    band = recipe.evidence.band if recipe and recipe.evidence else None
    above = band is not None and result.top1 > band[1] + TOO_GOOD and not is_another(facts)
    perfect = result.top1 >= 100 and images >= LEAST_IMAGES and not (band and band[1] >= 100)
    if recipe is None or not (above or perfect):
        return None
    than = f"more than the {band[0]:g} to {band[1]:g}% that {recipe.name} is known for" if band else "no image is wrong"
    return cause(
        "too_good",
        f"top-1 {result.top1:.2f}% is too good to be true ({than}): the same images may be in training and validation",
        (
            f"evaluation.json: {result.top1:.2f}% of {images:,.0f} images",
            f"recipe.yaml: data.train={recipe.data.train}, data.val={recipe.data.val}",
        ),
        check_data(facts),
        0.8 if above else 0.6,
    )


def _guessed(facts: Facts) -> float | None:
    """Top-1, in percent, of always answering the most frequent class; None where it is not known, or says nothing."""
    per_class = facts.evaluation.get("per_class") or []
    images = sum(row["samples"] for row in per_class)
    guessed = 100 * max(row["samples"] for row in per_class) / images if images >= LEAST_IMAGES else None
    return guessed if guessed and guessed < 90 else None


def _beyond(guessed: float, times: float, share: float) -> float:
    return min(times * guessed, guessed + share * (100 - guessed))


def _top1_in_training(facts: Facts) -> float | None:
    """Of the last line on training, in percent."""
    found = (number(row.get("train/top1")) for row in reversed(facts.metrics))
    return next((value for value in found if value is not None), None)
