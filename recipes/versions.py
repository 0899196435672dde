"""Recipes that another version of the program wrote: what is called otherwise now, and what is not known yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from recipes.errors import location_of
from recipes.nested import NOTHING, merge, nest, value_at, without
from recipes.schema.recipe import Recipe

FORMAT = 1
"""Of a run's own recipe.yaml, in which a program is to find its way whatever version wrote it."""
RENAMED: dict[str, str] = {}
"""Keys that recipes of earlier versions may have under another name: dotted name then -> now."""
REMOVED = ("checkpoint.max_failures",)
"""Keys of earlier versions that have no meaning any more."""


def lifted(values: dict[str, Any]) -> dict[str, Any]:
    """The content of a file as this version would have written it; unknown keys stay."""
    found = {key: value for key, value in values.items() if key != "format" or not isinstance(value, int)}
    for key in (*RENAMED, *REMOVED):
        if (value := value_at(found, key.split("."))) is not NOTHING:
            found = without(found, key.split("."))
            if key in RENAMED:
                found = merge(found, nest(RENAMED[key].split("."), value))
    return found


def may_be_newer(path: Path, values: dict[str, Any]) -> bool:
    """Whether keys that this version does not know are another version's, and no mistakes of a user.

    They are in a run's own recipe (version 0.1.0 noted no format there) and in a copy of one of a newer version.
    """
    if "base" in values:
        return False
    places = (path.parent / "status.json", path.parent.parent / "status.json")
    number = values.get("format")
    return (isinstance(number, int) and number > FORMAT) or (
        path.name == "recipe.yaml" and any(place.is_file() for place in places)
    )


def unknown_keys(values: dict[str, Any]) -> list[list[Any]]:
    """Paths of the keys that this version does not know."""
    try:
        Recipe.model_validate(values)
    except ValidationError as error:
        return [location_of(problem, values) for problem in error.errors() if problem["type"] == "extra_forbidden"]
    return []


def keep_unknown(content: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The content of a recipe with the keys of the file before that this version does not know.

    Those of a group that is there no more, or of an item of a list, are left out.
    """
    before = lifted(before)
    for path in unknown_keys(before):
        in_mappings = all(isinstance(part, str) for part in path)
        if in_mappings and isinstance(value_at(content, path[:-1]), dict):
            content = merge(content, nest(path, value_at(before, path)))
    return content
