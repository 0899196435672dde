"""What follows from a recipe before its data is seen: steps, batches, image sizes, learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from recipes import save_interval, unfreezing
from recipes.errors import COMMAND_LINE
from recipes.evidence import told
from recipes.load import Loaded
from recipes.net_size import net_size
from recipes.plan import Plan, effective_decay, make_plan, samples_known
from recipes.schema.model import net_of
from recipes.schema.recipe import NOT_TRAINING, Recipe


def follows(loaded: Loaded, gpus: int, samples: int | None = None) -> dict[str, Any]:
    """As plain values, for text and JSON; None and empty lists stand for what only the data will tell.

    gpus: devices over all nodes. samples: training images drawn in an epoch, where the recipe does not state them.
    Raises ValueError where the batch does not divide over the devices or is larger than an epoch.
    """
    recipe = loaded.recipe
    source = "by --samples" if samples else _stated(recipe)
    samples = samples or samples_known(recipe.data)
    # One step an epoch: enough for what does not depend on the number of steps.
    plan = make_plan(recipe, samples or recipe.batch_size, gpus)
    backbone = recipe.optimizer.backbone_lr_scale
    return {
        "network": network(recipe),
        "gpus": gpus,
        "samples": samples,
        "samples_from": source,
        "steps_per_epoch": plan.steps_per_epoch if samples else None,
        "total_steps": plan.total_steps if samples else None,
        "end_step": plan.end_step if samples else None,
        "batch_size": plan.batch_size,
        "per_device_batch": plan.batch_size // gpus,
        "micro_batch": None if recipe.max_batch_per_device == "auto" else plan.micro_batch,
        "accumulation": None if recipe.max_batch_per_device == "auto" else plan.accumulation,
        "lr": plan.lr,
        "backbone_lr": plan.lr * backbone if backbone != 1 else None,
        "stem_lr": _stem_lr(plan),
        "momentum_is": "momentum" if hasattr(recipe.optimizer, "momentum") else "beta1",
        "milestones": list(_milestones(plan)) if samples else [],
        "image_sizes": list(_image_sizes(plan)),
        "unfreeze": unfreezing.told(recipe.model.unfreeze),
        "ema": _ema(recipe),
        "swa": _swa(plan),
        "saves": save_interval.told(gpus) if recipe.checkpoint.every.unit == "auto" else None,
        "expected": _expected(loaded),
    }


def network(recipe: Recipe) -> dict[str, Any]:
    """What the network is made of, its size and what an image of the evaluation costs it.

    Where only the data tells the classes they are None, and parameters and multiply-adds without the classifier. Of one
    that the user wrote only its name and the classes are known.
    """
    if recipe.model.plugin:
        sizes = dict.fromkeys(("layers", "parameters", "multiply_adds", "parameters_per_class"))
        classes = recipe.model.num_classes or recipe.data.classes_stated()
        return {"blocks": recipe.model.plugin.place, "classes": classes, "pixels": recipe.augment.val_size, **sizes}
    model, net, pixels = recipe.model, net_of(recipe.model), recipe.augment.val_size
    classes = model.num_classes or recipe.data.classes_stated()
    per_class = net_size(model, 1, pixels).parameters - net_size(model, None, pixels).parameters
    return {
        "blocks": net.block,
        "layers": [*net.layers],
        "classes": classes,
        "pixels": pixels,
        **net_size(model, classes, pixels)._asdict(),
        "parameters_per_class": per_class,
    }


def _stated(recipe: Recipe) -> str:
    if samples_known(recipe.data):
        aside = [key for key in ("val_fraction", "fold", "test_fraction") if getattr(recipe.data, key) is not None]
        less = f", less what is put aside ({', '.join(f'data.{key}' for key in aside)})" if aside else ""
        made = "made by data.source" if recipe.data.made_here else "stated by the recipe (data.train_samples)"
        return made + less
    if recipe.data.balance in ("oversample", "sqrt"):
        return "unknown until the classes are counted (data.balance): give --samples N"
    for key in ("val_fraction", "fold", "test_fraction"):
        if getattr(recipe.data, key) is not None:
            what = "test" if key == "test_fraction" else "validation"
            return f"unknown until {what} images are put aside (data.{key}): give --samples N"
    return "unknown until the data is read: give --samples N"


def _milestones(plan: Plan) -> Iterator[dict[str, Any]]:
    """What the optimizer uses at the steps where a schedule turns, at the quarters and at both ends."""
    labels: dict[int, list[str]] = {0: ["start"]}
    for step, label in (*plan.turns(), *_quarters(plan)):
        labels.setdefault(step, []).append(label)
    for step in sorted(labels):
        hyper = plan.hyper(step)
        yield {
            "step": step,
            "epoch": plan.epoch(step),
            "lr": hyper.lr,
            "momentum": hyper.momentum,
            "label": ", ".join(labels[step]),
        }


def _quarters(plan: Plan) -> Iterator[tuple[int, str]]:
    for percent in (25, 50, 75):
        yield plan.total_steps * percent // 100, f"{percent}%"
    yield plan.total_steps - 1, "last step"


def _image_sizes(plan: Plan) -> Iterator[dict[str, int]]:
    """The epochs from which the training images have another size."""
    before = None
    for epoch in range(math.ceil(plan.total_steps / plan.steps_per_epoch)):
        if (size := plan.image_size(epoch * plan.steps_per_epoch)) != before:
            yield {"epoch": epoch, "size": size}
        before = size


def _stem_lr(plan: Plan) -> float | None:
    """The least learning rate that layer_decay leaves, the stem's; None without it."""
    optimizer = plan.recipe.optimizer
    return (
        plan.lr * optimizer.scale_of_layer(0, sum(net_of(plan.recipe.model).layers))
        if optimizer.layer_decay < 1
        else None
    )


def _ema(recipe: Recipe) -> dict[str, Any] | None:
    if recipe.ema is None:
        return None
    decay = effective_decay(recipe.ema, recipe.batch_size, recipe.epochs)
    return {"decay": decay, "stated": recipe.ema.decay, "every": recipe.ema.every}


def _swa(plan: Plan) -> list[float]:
    """The epochs after which weights are taken into the equal average."""
    if plan.recipe.swa is None:
        return []
    ends = sorted({*range(plan.steps_per_epoch, plan.end_step, plan.steps_per_epoch), plan.end_step})
    epochs = [round(plan.epoch(step), 2) for step in ends if plan.swa_after(step) == "average"]
    return [int(epoch) if epoch.is_integer() else epoch for epoch in epochs]


def _expected(loaded: Loaded) -> dict[str, Any]:
    evidence = loaded.recipe.evidence
    changed = [key for key, origin in loaded.origins.items() if origin == COMMAND_LINE]
    return {
        "top1": evidence.top1 if evidence else None,
        "band": evidence.band if evidence else None,
        "evaluation": evidence.evaluation if evidence else None,
        "spread": evidence.spread if evidence else None,
        "seeds": evidence.seeds if evidence else None,
        "measured": told(evidence.measured) if evidence else None,
        "changed": any(key.split(".")[0] not in NOT_TRAINING for key in changed)
        or (evidence is not None and evidence.recipe not in (None, loaded.recipe.name)),
    }
