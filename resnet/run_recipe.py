"""A run's recipe, used again from whatever folder: its data is where the run found it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from recipes.load import Loaded, load, load_file
from recipes.plugin_files import naming_copies
from resnet.rundir.provenance import read_provenance

_PLACES = ("train", "val", "test", "images", "val_labels")
"""Keys of `data` that may be paths."""


def load_run_recipe(run_dir: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Load the recipe of a run with changes to it (`a.b=value`), its data found as by `data_of_run`."""
    return load([f"recipe={run_dir / 'recipe.yaml'}", *with_data(run_dir, overrides)])


def with_data(run_dir: Path, overrides: Sequence[str]) -> list[str]:
    """Changes to a run's recipe, those before them that say where its data is."""
    given = {word.partition("=")[0] for word in overrides}
    found = {**_plugins_of_run(run_dir), **data_of_run(run_dir, given)}
    return [*(f"{key}={json.dumps(value)}" for key, value in found.items()), *overrides]


def _plugins_of_run(run_dir: Path) -> dict[str, Any]:
    """Keys that name the run's own copies of plugins, where it was moved."""
    recipe = load_file(run_dir / "recipe.yaml").recipe
    found = naming_copies(recipe, run_dir, only_lost=True)
    if found == recipe:
        return {}
    content = found.model_dump(mode="json")
    places = {"model.plugin": content["model"]["plugin"], "data.plugin": content["data"].get("plugin")}
    return {key: value for key, value in places.items() if value} | {"plugins": content["plugins"]}


def data_of_run(run_dir: Path, given: Iterable[str] = ()) -> dict[str, str]:
    """Where the run's data is, by dotted key: absolute paths for relative ones that lead nowhere from this folder, but
    do from the one that the run was started in.

    given: keys that are set otherwise, and so left alone (`data`: all of them).
    """
    given = {*given}
    started_in = read_provenance(run_dir).get("folder")
    if not started_in or "data" in given:
        return {}
    data = load_file(run_dir / "recipe.yaml").recipe.data
    places = ((key, getattr(data, key, None)) for key in _PLACES if f"data.{key}" not in given)
    moved = {f"data.{key}": os.path.join(started_in, path) for key, path in places if path and not _is_here(path)}
    return {key: path for key, path in moved.items() if os.path.exists(path)}


def _is_here(path: str) -> bool:
    """Whether a path means the same from everywhere, or something in this folder."""
    found = os.path.expanduser(os.path.expandvars(path))
    return os.path.isabs(found) or os.path.exists(found)
