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


def with_own_copies(recipe: Recipe, run_dir: Path) -> Recipe:
    """Copy the files of a recipe's plugins into a run (or sweep), and return the recipe that names the copies.

    Raises OSError where one cannot be copied.
    """

    def copied(plugin: PluginFields) -> str:
        if plugin.file is None:
            return plugin.path
        copy = copy_of(plugin, run_dir)
        if plugin.file.absolute() != copy:
            copy.parent.mkdir(parents=True, exist_ok=True)
            temporary = copy.with_name(f".{copy.name}.{os.getpid()}")
            shutil.copyfile(plugin.file, temporary)
            temporary.replace(copy)
        return f"{copy}:{plugin.name}"

    return with_paths(recipe, copied)
