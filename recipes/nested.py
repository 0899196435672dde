"""Nested values as YAML gives them, by paths of keys and list indices: looked up, merged and taken out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

NOTHING = object()


def value_at(values: Any, path: Iterable[Any]) -> Any:
    """What stands at a path, or NOTHING."""
    for part in path:
        inside = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if not inside and not (isinstance(values, dict) and part in values):
            return NOTHING
        values = values[part]
    return values


def nest(path: Iterable[Any], value: Any) -> Any:
    """Mappings in each other with a value at the end of a path."""
    for part in reversed(list(path)):
        value = {part: value}
    return value


def merge(below: Any, above: Any) -> Any:
    """above over below, key by key; an empty mapping takes all keys away, as in `model.activation_args={}`."""
    if isinstance(below, dict) and isinstance(above, dict) and above:
        return {**below, **{key: merge(below.get(key), value) for key, value in above.items()}}
    return above


def without(values: Any, path: Sequence[Any]) -> Any:
    """A copy that lacks the key at a path, which has to be there."""
    first, *rest = path
    if rest:
        inner = without(values[first], rest)
        if isinstance(values, list):
            return [inner if index == first else value for index, value in enumerate(values)]
        return {**values, first: inner}
    return {key: value for key, value in values.items() if key != first}
