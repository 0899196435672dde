"""What may change in a recipe while its run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipes.schema.plugins import with_paths
from recipes.schema.recipe import NOT_IN_DIGEST, Recipe
from recipes.text import show

FIXED = (
    "model",
    "seed",
    "batch_size",
    "max_batch_per_device",
    "optimizer.name",
    *(f"data.{key}" for key in ("balance", "class_shares", "repeats", "last_batch")),
    *(f"data.{key}" for key in ("val_fraction", "test_fraction", "fold", "max_train")),
)
"""Keys (and groups) that cannot change while a run goes on: its tensors, its samples and their order follow."""
TENSORS = ("model", "optimizer.name")
"""Those of them without which another run cannot start from its checkpoints either."""


def differences(before: Recipe, now: Recipe) -> dict[str, list[Any]]:
    """Keys whose values differ, with both, null where one of them has no such key.

    Of a group or a variant that one of them alone has, the keys that are not its defaults; {} where all are. Left out
    is what does not change the training: places and tracking, and data.decode=region beside cpu, which is as exact.
    """
    old, new = (values(recipe) for recipe in (before, now))
    found = {key: [old.get(key), new.get(key)] for key in {**old, **new} if old.get(key) != new.get(key)}
    if "gpu" not in found.get("data.decode", ()):
        found.pop("data.decode", None)
    own = {**values(before, exclude_defaults=True), **values(now, exclude_defaults=True)}
    told = {key: pair for key, pair in found.items() if key in own or (key in old and key in new)}
    for key in sorted({key.rpartition(".")[0] for key in found.keys() - told.keys()}):
        if key in {**old, **new} and not any(_is_among(one, (key,)) for one in told):
            told[key] = [None, {}] if key in old else [{}, None]
    return told


def values(recipe: Recipe, exclude_defaults: bool = False) -> dict[str, Any]:
    """By dotted key; those that do not change the training are left out."""
    placed = with_paths(recipe, lambda plugin: plugin.place)
    content = placed.model_dump(mode="json", exclude=NOT_IN_DIGEST, exclude_defaults=exclude_defaults)
    return dict(_flat(content))


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat = []
    for key, value in values.items():
        # A pruned network has dozens of channels, which say something together only.
        inside = isinstance(value, dict) and f"{prefix}{key}" != "model.channels"
        flat += _flat(value, f"{prefix}{key}.") if inside else [(f"{prefix}{key}", value)]
    return flat


def going_on(recipe: Recipe, before: Recipe) -> Recipe:
    """A recipe as its run goes on with it: channels that it leaves to its pretrained weights are those they had.

    before: the run's own recipe.
    """
    model = recipe.model
    if model.channels or not model.pretrained or model.pretrained != before.model.pretrained:
        return recipe
    return recipe.model_copy(update={"model": model.model_copy(update={"channels": before.model.channels})})


def refuse_fixed(changed: dict[str, list[Any]], run_dir: Path) -> None:
    """Raise ValueError, naming all of them, where keys changed that a run cannot change."""
    # Shards hold what such a share or number left; the digest of their labels tells whether it is the same.
    free = ("data.val_fraction", "data.max_train") if "shards" in changed.get("data.source", ()) else ()
    if fixed := [key for key in changed if _is_among(key, FIXED) and key not in free]:
        listed = "\n".join(f"  {key}: {show(changed[key][0])} -> {show(changed[key][1])}" for key in fixed)
        advice = "put them back, or choose another run.name"
        if not any(_is_among(key, TENSORS) for key in fixed):
            advice += f"; to start a new run from its checkpoint: resume={run_dir} run.name=NEW"
        raise ValueError(f"{run_dir} is a run, and these keys cannot change while it goes on:\n{listed}\n{advice}")


def _is_among(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
