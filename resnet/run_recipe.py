"""A run's recipe, used again from whatever folder: its data is where the run found it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from recipes.load import Loaded, load, load_file
from resnet.rundir.provenance import read_provenance

_PLACES = ("train", "val", "test", "images", "val_labels")
"""Keys of `data` that may be paths."""


def load_run_recipe(run_dir: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Load the recipe of a run with changes to it (`a.b=value`), its data found as by `data_of_run`."""
    return load([f"recipe={run_dir / 'recipe.yaml'}", *with_data(run_dir, overrides)])


def with_data(run_dir: Path, overrides: Sequence[str]) -> list[str]:
    """Changes to a run's recipe, those before them that say where its data is."""
    given = {word.partition("=")[0] for word in overrides}
    return [*(f"{key}={json.dumps(value)}" for key, value in data_of_run(run_dir, given).items()), *overrides]


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
