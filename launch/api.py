"""What `import launch` offers: runs are sent from Python as `launch submit` sends them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.runs.requests import Place
from launch.runs.send import prepare
from launch.runs.send import submit as send_prepared
from recipes.load import Loaded, load_values
from recipes.schema.recipe import Recipe
from slurm.profile import load_profile

if TYPE_CHECKING:
    from resnet.api import Run


def submit(recipe: Recipe | str | Path, cluster: str, changes: Mapping[str, Any] | None = None, **slurm: Any) -> Run:
    """Send a run to a Slurm cluster, as `launch submit` does, and return it.

    recipe: of `resnet.load_recipe`, or a recipe's name or path. cluster: a profile's name or file,
    or several with commas.
    changes: to the recipe by dotted key, as in `{"optimizer.lr": 0.1, "run.name": "first"}`.
    slurm: changes to the profile, as in `nodes=4, time="8:00:00"`.
    Raises ValueError, with nothing sent, for a recipe or a profile that cannot be used, and where Slurm refuses.
    """
    from resnet.api import Run

    of_profile = [f"slurm.{key}={json.dumps(value)}" for key, value in slurm.items()]
    places = [Place(name, load_profile(name, of_profile)) for name in cluster.split(",")]
    prepared = prepare(_loaded(recipe, changes), places)
    send_prepared(prepared, places)
    return Run(prepared.run_dir)


def _loaded(recipe: Recipe | str | Path, changes: Mapping[str, Any] | None) -> Loaded:
    if not isinstance(recipe, Recipe):
        return load_values(recipe, changes)
    if changes:
        raise ValueError("changes= are for a recipe given by name: load_recipe(name, changes) takes them too")
    is_placed = recipe.run.root != type(recipe.run)().root
    return Loaded(recipe, {"run.root": "given here"} if is_placed else {})
