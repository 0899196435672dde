"""What an exported network says of itself: all that its users need, and nothing of the machine it was trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.load import to_yaml
from recipes.schema.model import is_download
from recipes.schema.plugins import PluginFields
from recipes.schema.recipe import Recipe
from resnet.tools.trained import Trained
from resnet.weights_file import KEY, metadata_of, read_info

_OF_THE_RUN = {"run", "wandb", "resume", "progress", "profile", "log_every", "watchdog"}
_PATHS = {"train", "val", "test", "val_labels", "images"}
"""Keys of `data` that say where files are."""
RECIPE = "recipe_yaml"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def public_recipe(recipe: Recipe) -> dict[str, Any]:
    """The values of a recipe without places, names of runs and where they are tracked; as JSON takes them."""
    content = recipe.model_dump(mode="json", exclude={**dict.fromkeys(_OF_THE_RUN, True), "data": _PATHS})
    if name := dataset_of(recipe):
        content["data"]["train"] = name
    if (weights := recipe.model.pretrained) is not None and not is_download(weights):
        del content["model"]["pretrained"]
    if content["evidence"] is not None and (stated := content["evidence"]["recipe"]) is not None:
        content["evidence"]["recipe"] = Path(stated).name
    if content["distill"] is not None:
        del content["distill"]["teacher"]
    return _without_folders(content)


def _without_folders(content: Any) -> Any:
    """With the last names of plugins' files alone."""
    if isinstance(content, dict) and content.keys() == PluginFields.model_fields.keys():
        return {**content, "path": Path(content["path"]).name}
    if isinstance(content, dict):
        return {key: _without_folders(value) for key, value in content.items()}
    return [_without_folders(value) for value in content] if isinstance(content, list) else content


def dataset_of(recipe: Recipe) -> str | None:
    """The name of the data on huggingface.co, where the recipe says it."""
    name = recipe.data.train
    on_the_hub = recipe.data.source == "huggingface" and "train" not in recipe.data.paths() and not Path(name).exists()
    return name if on_the_hub and _HUB_NAME.fullmatch(name) else None


def public_words(words: Sequence[str]) -> list[str]:
    """A command's words with the last names of paths alone, as `data.val=val` of `data.val=/home/me/val`."""
    return [_public_word(word) for word in words]


def _public_word(word: str) -> str:
    key, equals, value = word.partition("=")
    if equals and "/" not in key:
        return f"{key}={_public_word(value)}"
    return Path(word).name if "/" in word else word


def public_weights(trained: Trained) -> str:
    """The place of weights in their run, or their file's name."""
    file, run_dir = trained.weights.absolute(), trained.run_dir and trained.run_dir.absolute()
    return str(file.relative_to(run_dir)) if run_dir and file.is_relative_to(run_dir) else file.name


def description(trained: Trained, classes: list[str]) -> dict[str, Any]:
    """What weights files say of themselves, see `resnet.weights_file.WeightsInfo`, and the recipe as YAML."""
    info = read_info(trained.weights)
    content = json.loads(metadata_of(trained.recipe, classes, info.step if info else 0)[KEY])
    return content | {RECIPE: to_yaml(public_recipe(trained.recipe))}
