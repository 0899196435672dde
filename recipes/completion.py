"""What the beginning of a word of a recipe's command line may become: recipes, keys, and values that are listed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args, get_origin

from recipes.keys import fields_of, groups_of, kinds, variants
from recipes.library import all_names
from recipes.schema.recipe import Recipe


def complete_word(prefix: str) -> Iterator[str]:
    """Words `KEY=VALUE` that begin so; of a key that is not whole, the keys of its group."""
    key, equals, _ = prefix.partition("=")
    if equals:
        yield from (f"{key}={value}" for value in _values(key))
        return
    yield "recipe="
    group = key.rpartition(".")[0]
    models = [model for field in fields_of(group) for model in groups_of(field)] if group else [Recipe]
    for name, field in {name: field for model in models for name, field in model.model_fields.items()}.items():
        inner = groups_of(field)
        yield f"{group}.{name}".lstrip(".") + ("." if inner else "=")


def _values(key: str) -> list[str]:
    if key == "recipe":
        return all_names()
    if key.count(".") == 1 and key.partition(".")[0] in variants():
        tag, by_name = variants()[key.partition(".")[0]]
        if key.endswith(f".{tag}"):
            return sorted(by_name)
    found = [kind for field in fields_of(key) for kind in kinds(field.annotation)]
    listed = [str(value) for kind in found if get_origin(kind) is Literal for value in get_args(kind)]
    return listed + (["true", "false"] if bool in found else []) + (["null"] if type(None) in found else [])
