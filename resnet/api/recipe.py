"""Recipes, the networks they describe, and files of weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.load import Loaded, load_values
from recipes.schema.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from resnet.weights_file import WeightsInfo


def load_recipe(name: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Load a recipe by its name, or from a YAML file or a run directory by its path.

    changes: values by dotted key, as in `{"optimizer.lr": 0.1, "model.layers": [1, 1, 1], "ema": None}`.
    Raises ValueError with all mistakes at once, each with what would be right.
    """
    return noted(load_values(name, changes))


def build_model(recipe: Recipe | str, num_classes: int | None = None) -> nn.Module:
    """Build the network that training would begin with, on the CPU: float (N, 3, H, W) -> logits (N, num_classes).

    Its weights come from the recipe's seed, or are the pretrained ones that it names.
    recipe: of `load_recipe`, or the name of one. num_classes: None takes the recipe's model.num_classes.
    Raises ValueError where neither gives the number of classes, and for pretrained weights that cannot be used.
    """
    import torch

    from resnet.build import initial_model
    from resnet.pretrained import shaped_as_weights

    recipe, _ = shaped_as_weights(load_recipe(recipe) if isinstance(recipe, str) else recipe)
    classes = recipe.model.num_classes if num_classes is None else num_classes
    if classes is None:
        raise ValueError("the recipe takes the number of classes from its data: give num_classes=")
    if classes < 1:
        raise ValueError(f"num_classes={classes}: a network has 1 class or more")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        return initial_model(recipe, classes)[0]


def load(weights: str | Path, recipe: Recipe | str | None = None) -> nn.Module:
    """Load the network of a weights file, on the CPU and in evaluation mode: normalised float (N, 3, H, W) -> logits.

    weights: a file, or the directory of a finished run. recipe: for a file that does not say which network it is of, a
    recipe that does, or the name of one.
    Raises ValueError where it cannot be read, or is of another network than the recipe's.
    """
    from resnet.tools.weights import load_alone

    return load_alone(_weights_file(weights), load_recipe(recipe) if isinstance(recipe, str) else recipe)


def weights_info(weights: str | Path) -> WeightsInfo | None:
    """What a weights file says of itself: architecture, classes, mean and std, sizes, recipe, step.

    None: nothing, as it is of another program or of version 0.1.0. Raises ValueError where it cannot be read.
    """
    from resnet.weights_file import read_info

    return read_info(_weights_file(weights))


def _weights_file(weights: str | Path) -> Path:
    from resnet.run_weights import FINAL

    file = Path(weights).expanduser()
    file = file / FINAL if (file / FINAL).is_file() else file
    if not file.is_file():
        raise ValueError(f"there is no file {file}: give a file of weights, as final.safetensors in a run's directory")
    return file


def as_words(changes: Mapping[str, Any]) -> list[str]:
    """Changes as a command line has them."""
    values = {key: value if key == "recipe" else json.dumps(value, default=str) for key, value in changes.items()}
    return [f"{key}={value}" for key, value in values.items()]


def noted(loaded: Loaded) -> Recipe:
    for note in loaded.notes:
        warnings.warn(note, stacklevel=3)
    return loaded.recipe
