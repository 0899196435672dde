"""A JSON schema of recipe files, for editors: `python -m recipes.schema.json_schema` writes recipes/schema.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recipes.schema.recipe import Recipe

PATH = Path(__file__).parents[1] / "schema.json"
_NAMED = ("properties", "$defs")


def json_schema() -> dict[str, Any]:
    """The schema of one YAML file: part of a recipe, its `base` giving the rest.

    Nothing is required, and a group with variants may leave out which one it is: its keys must be those of one of them.
    """
    schema = _of_a_part(Recipe.model_json_schema())
    names = {"type": "array", "items": {"type": "string"}}
    base = {"description": "Recipes that this one changes, by name or file", "anyOf": [{"type": "string"}, names]}
    schema["properties"] = {"base": base, **schema["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Recipe", **schema}


def _of_a_part(node: Any) -> Any:
    if isinstance(node, list):
        return [_of_a_part(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {
        key: {name: _of_a_part(inner) for name, inner in value.items()} if key in _NAMED else _of_a_part(value)
        for key, value in node.items()
        if key not in ("required", "discriminator", "title")
    }
    if isinstance(kept.get("default"), dict):
        del kept["default"]
    if "oneOf" in kept:
        kept["anyOf"] = kept.pop("oneOf")
    return kept


def text() -> str:
    """What recipes/schema.json holds."""
    return json.dumps(json_schema(), indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
