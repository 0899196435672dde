"""The keys of a recipe, or of any typed group, as rows for people: type, default and meaning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from recipes.keys import groups_of, kinds, variants
from recipes.schema.fields import Duration
from recipes.schema.recipe import Recipe
from recipes.text import show

_MEANINGS = {
    "data": "Where the images come from; each source has keys of its own.",
    "optimizer": "How the weights are updated; each optimizer has keys of its own.",
    "schedule": "How the learning rate goes; each schedule has keys of its own.",
}


class Key(NamedTuple):
    """A key and what may be said of it."""

    name: str
    """With dots."""
    kind: str
    """The values it takes, in words."""
    default: str
    meaning: str
    variants: tuple[str, ...] = ()
    """As `optimizer.name=sgd`: those that have it, where not all do."""


def recipe_keys() -> list[Key]:
    """Every key that a recipe may have, those of all variants included, in the order of the schema."""
    return [
        key
        for group, field in Recipe.model_fields.items()
        for key in (_of_variants(group, field) if group in variants() else _described(field, group))
    ]


def _of_variants(group: str, field: FieldInfo) -> list[Key]:
    """The key that names the variant, and those that each has; what several have alike is one row."""
    tag, by_name = variants()[group]
    default = "" if field.is_required() else str(getattr(field.default, tag))
    rows = {tag: Key(f"{group}.{tag}", f"one of {', '.join(by_name)}", default, _MEANINGS[group])}
    for name, model in by_name.items():
        for key in _keys(model, f"{group}."):
            if key.name != f"{group}.{tag}":
                same = f"{key.name} {key.kind} {key.default}"
                with_them = rows[same].variants if same in rows else ()
                rows[same] = key._replace(variants=(*with_them, f"{group}.{tag}={name}"))
    return [key._replace(variants=()) if len(key.variants) == len(by_name) else key for key in rows.values()]


def keys_of(model: type[BaseModel], prefix: str) -> list[Key]:
    """The keys of one group, each with the prefix before its name."""
    return [*_keys(model, prefix)]


def _keys(model: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        yield from _described(field, f"{prefix}{name}")


def _described(field: FieldInfo, name: str) -> Iterator[Key]:
    groups = groups_of(field)
    default = "" if field.is_required() else _default(field.get_default(call_default_factory=True))
    meaning = field.description or next((" ".join((group.__doc__ or "").split()) for group in groups), "")
    yield Key(name, kind_of(field), default, meaning)
    for group in groups:
        yield from _keys(group, f"{name}.")


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        return ""
    return str(value) if isinstance(value, Duration) else show(value)


def kind_of(field: FieldInfo) -> str:
    """The values that a field takes, in words."""
    return _words(field.annotation, list(field.metadata))


def _words(annotation: Any, limits: list[Any]) -> str:
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _words(inner, [*limits, *more])
    found = kinds(annotation)
    if len(found) > 1:
        # Without what is said of a member, which `kinds` takes off: read them one by one.
        members = get_args(annotation) or found
        told = [_words(member, limits) for member in members if member is not type(None)]
        return " or ".join([*dict.fromkeys(told), *(["null"] if type(None) in found else [])])
    return _word(found[0], limits)


def _word(kind: Any, limits: list[Any]) -> str:
    origin, inside = get_origin(kind), list(get_args(kind))
    if origin is Literal:
        return f"one of {', '.join(map(str, inside))}" if len(inside) > 1 else str(inside[0])
    if origin is list:
        return f"a list of {_words(inside[0], [])}"
    if origin is tuple:
        return f"{len(inside)} x {_words(inside[0], [])}"
    if origin is dict:
        return "a group of names and values"
    if kind is Duration:
        return "a span as 500 steps, 1 epochs or 30 minutes, or auto"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "a group of keys"
    name = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(kind, str(kind))
    return name + _limits(limits)


def _limits(limits: list[Any]) -> str:
    told = []
    for limit in [inner for outer in limits for inner in (outer, *getattr(outer, "metadata", ()))]:
        for kind, sign, attribute in ((Ge, ">=", "ge"), (Gt, ">", "gt"), (Le, "<=", "le"), (Lt, "<", "lt")):
            if isinstance(limit, kind):
                told.append(f" {sign} {getattr(limit, attribute):g}" if abs(getattr(limit, attribute)) < 2**40 else "")
    return " and".join(dict.fromkeys(filter(None, told)))
