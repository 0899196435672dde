"""Recipes by name: those that come with the program, and the user's own."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
_LOGS = "evidence"
"""Folder below it that holds logs of runs, whose recipes are not for starting from."""


@cache
def shipped() -> dict[str, Path]:
    """The recipes that come with the program, by name; their folders only sort them."""
    return {path.stem: path for path in FOLDER.rglob("*.yaml") if _LOGS not in path.relative_to(FOLDER).parts}


def names() -> list[str]:
    """Names of the recipes that come with the program."""
    return sorted(shipped())


def folder_of(name: str) -> str:
    """The folder that a recipe's file lies in, as imagenet."""
    return shipped()[name].parent.name


def config_folder() -> Path:
    """Where a user's own recipes and clusters lie."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "resnet-launch"


def own_folders() -> list[Path]:
    """Where recipes of the user's own are looked for, in this order; those that are there."""
    here = Path("recipes")
    # In a copy of the program this is its own.
    found = [] if (here / "schema" / "recipe.py").is_file() else [here]
    return [folder for folder in (*found, config_folder() / "recipes") if folder.is_dir()]


def own_files() -> list[Path]:
    """The files of all recipes of the user's own, at most one folder down."""
    return [path for folder in own_folders() for depth in ("*.yaml", "*/*.yaml") for path in sorted(folder.glob(depth))]


def own() -> dict[str, Path]:
    """The user's own recipes by name, but for those whose name a shipped one has, or another of theirs before them."""
    by_name: dict[str, Path] = {}
    for path in own_files():
        if path.stem not in shipped():
            by_name.setdefault(path.stem, path)
    return by_name


def all_names() -> list[str]:
    """What `recipe=` takes: names of shipped recipes and of the user's own."""
    return sorted({*shipped(), *own()})


def file_of(name: str) -> Path | None:
    """The file of a recipe's name; shipped ones go before the user's own, so that a name means the same everywhere."""
    return shipped().get(name) or own().get(name)
