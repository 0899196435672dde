"""Files of the user's own code, copied to where a run keeps them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from recipes.schema.plugins import PLUGINS, PluginFields, with_paths
from recipes.schema.recipe import Recipe


def copy_of(plugin: PluginFields, folder: Path) -> Path:
    """Where a run or sweep keeps its copy of a plugin's file."""
    assert plugin.file is not None
    return folder.absolute() / PLUGINS / plugin.file.name


def is_edited(plugin: PluginFields, folder: Path) -> bool:
    """Whether a plugin's file holds something else than the copy that a run or sweep keeps of it."""
    if plugin.file is None or not plugin.file.is_file() or not (copy := copy_of(plugin, folder)).is_file():
        return False
    return copy.read_bytes() != plugin.file.read_bytes()


def with_own_copies(recipe: Recipe, folder: Path) -> Recipe:
    """Copy the files of a recipe's plugins into a run (or sweep), and return the recipe that names the copies.

    Raises OSError where one cannot be copied.
    """
    for plugin in recipe.plugins_named().values():
        if plugin.file is not None and plugin.file.absolute() != (copy := copy_of(plugin, folder)):
            copy.parent.mkdir(parents=True, exist_ok=True)
            temporary = copy.with_name(f".{copy.name}.{os.getpid()}")
            shutil.copyfile(plugin.file, temporary)
            temporary.replace(copy)
    return naming_copies(recipe, folder)


def naming_copies(recipe: Recipe, folder: Path, only_lost: bool = False) -> Recipe:
    """The recipe with the paths of the copies that a run or sweep keeps.

    only_lost: only where a copy is not where the recipe names it, and is there, as in a run that was moved.
    """

    def path_of(plugin: PluginFields) -> str:
        if plugin.file is None or (only_lost and not _is_lost(plugin.file, copy_of(plugin, folder))):
            return plugin.path
        return f"{copy_of(plugin, folder)}:{plugin.name}"

    return with_paths(recipe, path_of)


def _is_lost(file: Path, copy: Path) -> bool:
    return file.is_absolute() and file.parent.name == PLUGINS and not file.exists() and copy.exists()
