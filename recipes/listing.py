"""The recipes as a list: grouped by data and family of networks, sorted by depth, filtered by words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from recipes.errors import RecipeError
from recipes.library import folder_of, own, own_files, shipped
from recipes.load import load
from recipes.schema.model import name_of_model, net_of
from recipes.schema.recipe import Recipe
from recipes.text import joined, suggestion

GROUPS = ("starters", "cifar", "imagenet")
"""Folders of recipes, in the order of a first look; others follow."""
FAMILIES = (
    "ResNet",
    "ResNet-D",
    "SE-ResNet",
    "ResNet-RS",
    "ResNeXt",
    "Wide ResNet",
    "pre-activation ResNet",
    "your own",
)


class Listed(NamedTuple):
    """A recipe that can be read."""

    recipe: Recipe
    group: str
    """The folder that sorts it; the user's own: where it lies."""
    family: str
    path: Path

    @property
    def name(self) -> str:
        """By which `recipe=` finds it, whatever its own `name` says."""
        return self.path.stem

    @property
    def model(self) -> str:
        """The network in a word or two."""
        return name_of_model(self.recipe.model)


class Unusable(NamedTuple):
    """A file of the user's own that `recipe=NAME` does not take."""

    path: Path
    why: str


def shipped_recipes() -> list[Listed]:
    """Those that come with the program."""
    rows = (_listed(load([f"recipe={name}"]).recipe, folder_of(name), path) for name, path in shipped().items())
    return sorted(rows, key=_place)


def own_recipes() -> tuple[list[Listed], list[Unusable]]:
    """Those of the user's own, and the files that no name leads to."""
    usable, unusable, named = [], [], own()
    for path in own_files():
        if named.get(path.stem) != path:
            taken = "the program" if path.stem in shipped() else str(named[path.stem])
            unusable.append(Unusable(path, f"{path.stem} is a recipe of {taken}, too: take this one by recipe={path}"))
            continue
        try:
            usable.append(_listed(load([f"recipe={path}"]).recipe, str(path.parent), path))
        except RecipeError as error:
            unusable.append(Unusable(path, str(error).splitlines()[0]))
    return sorted(usable, key=lambda row: (row.group, _place(row))), unusable


def _listed(recipe: Recipe, group: str, path: Path) -> Listed:
    return Listed(recipe, group, family_of(recipe), path)


def family_of(recipe: Recipe) -> str:
    """The family of a recipe's network, as in the papers that made them."""
    if recipe.model.plugin:
        return "your own"
    net = net_of(recipe.model)
    if net.groups > 1:
        return "ResNeXt"
    if net.width_per_group > 64 or max(net.widths) > 64 << (len(net.layers) - 1):
        return "Wide ResNet"
    if net.preact:
        return "pre-activation ResNet"
    if net.attention == "se":
        return "ResNet-RS" if net.maxpool == "conv" else "SE-ResNet"
    return "ResNet-D" if net.stem == "deep" or net.downsample == "avgpool" else "ResNet"


def _place(row: Listed) -> tuple[int, str, int, bool, list[tuple[int, str]]]:
    """By folder and family, what needs no data first, then by name, where resnet50 comes before resnet101."""
    parts = re.findall(r"\d+|\D+", row.path.stem)
    place = GROUPS.index(row.group) if row.group in GROUPS else len(GROUPS)
    number = [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
    return place, row.group, FAMILIES.index(row.family), not row.recipe.data.made_here, number


def matching(rows: Iterable[Listed], data: str | None, model: str | None) -> list[Listed]:
    """The recipes whose data and network have these words in their names; case and separators do not matter.

    A number at a word's end is a whole one: resnet50 does not find resnet500. Raises ValueError where none is left.
    """
    left, all_rows = list(rows), list(rows)
    for option, word, texts in (("--data", data, _data_names), ("--model", model, _model_names)):
        if word is None:
            continue
        pattern = re.compile(re.escape(joined(word)) + (r"(?!\d)" if word[-1:].isdigit() else ""))
        found = [row for row in all_rows if any(pattern.search(joined(text)) for text in texts(row))]
        if not found:
            words = dict.fromkeys(texts(row)[0] for row in all_rows)
            raise ValueError(f"no recipe of {option} {word}: {suggestion(word, words)}")
        left = [row for row in left if row in found]
    if not left:
        raise ValueError(f"no recipe of both --data {data} and --model {model}")
    return left


def _data_names(row: Listed) -> list[str]:
    data = row.recipe.data
    sources = [row.group] if data.source in ("image_folder", "csv", "shards", "huggingface") else [data.source]
    return [*sources, row.name, data.source, data.train]


def _model_names(row: Listed) -> list[str]:
    return [row.model, row.family]
