"""What may change in a recipe while its run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipes.schema.recipe import NOT_TRAINING, Recipe

FIXED = (
    "model",
    "seed",
    "batch_size",
    "max_batch_per_device",
    "optimizer.name",
    *(f"data.{key}" for key in ("balance", "repeats", "last_batch", "val_fraction", "max_train")),
)
"""Keys (and groups) that cannot change while a run goes on: its tensors, its samples and their order follow."""
TENSORS = ("model", "optimizer.name")
"""Those of them without which another run cannot start from its checkpoints either."""


def differences(before: Recipe, now: Recipe) -> dict[str, list[Any]]:
    """Keys whose values differ, with both; those that do not change the training are left out."""
    old, new = (dict(_flat(recipe.model_dump(mode="json", exclude=set(NOT_TRAINING)))) for recipe in (before, now))
    return {key: [old.get(key), new.get(key)] for key in {**old, **new} if old.get(key) != new.get(key)}


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat = []
    for key, value in values.items():
        flat += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return flat


def refuse_fixed(changed: dict[str, list[Any]], run_dir: Path) -> None:
    """Raise ValueError, naming all of them, where keys changed that a run cannot change."""
    if fixed := [key for key in changed if _is_among(key, FIXED)]:
        listed = "\n".join(f"  {key}: {changed[key][0]} -> {changed[key][1]}" for key in fixed)
        advice = "put them back, or choose another run.name"
        if not any(_is_among(key, TENSORS) for key in fixed):
            advice += f"; to start a new run from its checkpoint: resume={run_dir} run.name=NEW"
        raise ValueError(f"{run_dir} is a run, and these keys cannot change while it goes on:\n{listed}\n{advice}")


def _is_among(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
