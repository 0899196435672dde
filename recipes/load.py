"""From `recipe=NAME a.b=value ...` to a validated `Recipe` that knows where each of its values came from."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml
from pydantic import BaseModel, ValidationError

from recipes.schema import NOT_TRAINING, Recipe

FOLDER = Path(__file__).parent
COMMAND_LINE = "command line"


class RecipeError(ValueError):
    """A recipe that cannot be used; the message lists every mistake, one a line."""


class Loaded(NamedTuple):
    recipe: Recipe
    origins: dict[str, str]
    """Dotted key -> where its value was set (a file and line, or the command line); defaults are not listed."""


class _Yaml(yaml.SafeLoader):
    """YAML 1.2's plain scalars: 1e-4 is a number, off and no are words, 2:30 is text, dates are text."""


_Yaml.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
):
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def names() -> list[str]:
    """Names of the recipes that come with the program."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(argv: Iterable[str]) -> Loaded:
    """Load the recipe that a command line names.

    argv: `recipe=NAME_OR_PATH` once, and any number of `a.b=value` overrides whose values are YAML.
    Raises RecipeError with all mistakes at once.
    """
    overrides = [_split(argument) for argument in argv]
    chosen = [value for key, value in overrides if key == "recipe"]
    if len(chosen) != 1:
        raise RecipeError(f"give one recipe=NAME; there are: {', '.join(names())}")
    layers = [*_file_layers(_find(chosen[0], Path.cwd()), ())]
    for key, text in overrides:
        if key != "recipe":
            layers.append(_override_layer(key, text))
    return _build(layers, default_name=Path(chosen[0]).stem)


def load_file(path: Path) -> Loaded:
    """Load a YAML file alone, as the resolved `recipe.yaml` of a run directory."""
    return _build([*_file_layers(path, ())], default_name=path.stem)


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_file` reads back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=110)


def digest(recipe: Recipe) -> str:
    """Hash (12 hex digits) of what defines the training; names, tracking and places are not in it.

    Values equal to their defaults are left out, so that a key added later with a default changes no hash.
    """
    content = recipe.model_dump(mode="json", exclude_defaults=True, exclude=set(NOT_TRAINING))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def parse_value(text: str) -> Any:
    """Read a command-line value as YAML 1.2: 1e-4 is a float, [4,5,3] a list, off a word."""
    return yaml.load(text, _Yaml)


def _split(argument: str) -> tuple[str, str]:
    key, equals, value = argument.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
        hint = f": did you mean {key.lstrip('-')}={value or '...'}?" if argument.startswith("-") else ""
        raise RecipeError(f"cannot read {argument!r}, arguments have the form key=value{hint}")
    return key, value


def _find(name: str, relative_to: Path) -> Path:
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml") or "/" in name:
        path = relative_to / path
        if path.is_dir() and (path / "recipe.yaml").is_file():
            path = path / "recipe.yaml"
        if not path.is_file():
            raise RecipeError(f"no recipe file {path}")
        return path
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        close = difflib.get_close_matches(name, names(), n=3)
        what = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(names())}"
        raise RecipeError(f"no recipe {name!r}: {what}")
    return path


Layer = tuple[dict[str, Any], dict[str, str]]
"""Nested values, and the origin of each dotted key among them."""


def _file_layers(path: Path, below: tuple[Path, ...]) -> Iterator[Layer]:
    """The layers of a YAML file, those of its `base` first."""
    path = path.resolve()
    if path in below:
        raise RecipeError(f"{path}: base goes round in a circle: {' -> '.join(p.stem for p in (*below, path))}")
    shown = path.relative_to(FOLDER.parent) if path.is_relative_to(FOLDER.parent) else path
    try:
        loader = _Yaml(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        origins: dict[str, str] = {}
        if node is not None:
            _note_lines(node, str(shown), "", origins)
        values = {} if node is None else loader.construct_document(node)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"cannot read recipe {shown}: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{shown} holds no keys: a recipe is a YAML mapping")
    base = values.pop("base", [])
    for parent in [base] if isinstance(base, str) else base:
        yield from _file_layers(_find(str(parent), path.parent), (*below, path))
    yield values, origins


def _note_lines(node: yaml.Node, file: str, prefix: str, origins: dict[str, str]) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        dotted = f"{prefix}{key.value}"
        if dotted in origins:
            raise RecipeError(f"{file}:{key.start_mark.line + 1}: {dotted} stands twice (first in {origins[dotted]})")
        origins[dotted] = f"{file}:{key.start_mark.line + 1}"
        _note_lines(value, file, f"{dotted}.", origins)


def _override_layer(key: str, text: str) -> Layer:
    try:
        value = parse_value(text)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "not YAML"
        raise RecipeError(f"cannot read the value of {key}={text} ({COMMAND_LINE}): {problem}") from error
    layer: Any = value
    for part in reversed(key.split(".")):
        layer = {part: layer}
    return layer, dict.fromkeys([key, *_keys(value, f"{key}.")], COMMAND_LINE)


def _keys(values: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")


def _build(layers: list[Layer], default_name: str) -> Loaded:
    values: dict[str, Any] = {"name": default_name}
    origins: dict[str, str] = {}
    for layer, layer_origins in layers:
        _leave_old_variant(values, origins, layer)
        values = _merge(values, layer)
        origins.update(layer_origins)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems = dict.fromkeys(_explain(problem, values, origins) for problem in error.errors())
        raise RecipeError("\n".join(problems)) from None
    return Loaded(recipe, {key: origin for key, origin in origins.items() if not isinstance(_get(values, key), dict)})


def _merge(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return {**below, **{key: _merge(below.get(key), value) for key, value in above.items()}}
    return above


@cache
def variants() -> dict[str, tuple[str, dict[str, type[BaseModel]]]]:
    """For each group with variants: the key that names one, and the variants by name."""
    found = {}
    for group, field in Recipe.model_fields.items():
        if isinstance(field.discriminator, str) or (tag := _tag(field)):
            tag = field.discriminator if isinstance(field.discriminator, str) else tag
            classes = get_args(field.annotation)
            by_name = {name: cls for cls in classes for name in get_args(cls.model_fields[tag].annotation)}
            found[group] = (tag, by_name)
    return found


def _tag(field: Any) -> str | None:
    return next((m.discriminator for m in field.metadata if hasattr(m, "discriminator")), None)


def _leave_old_variant(values: dict[str, Any], origins: dict[str, str], layer: dict[str, Any]) -> None:
    """Where a layer picks another optimizer, schedule or source: drop the inherited keys that it does not have."""
    for group, (tag, by_name) in variants().items():
        above, below = layer.get(group), values.get(group)
        if not isinstance(above, dict) or not isinstance(below, dict) or above.get(tag) in (None, below.get(tag)):
            continue
        if variant := by_name.get(above[tag]):
            values[group] = {key: value for key, value in below.items() if key in variant.model_fields}
            gone = [f"{group}.{key}" for key in below.keys() - variant.model_fields.keys()]
            for key in gone:
                origins.pop(key, None)


def _get(values: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        if not isinstance(values, dict) or part not in values:
            return None
        values = values[part]
    return values


def _explain(problem: Any, values: dict[str, Any], origins: dict[str, str]) -> str:
    """One line for one of pydantic's errors: the key, its value, where it came from, what would be right."""
    location = [part for part in problem["loc"]]
    for group, (_, by_name) in variants().items():
        if location[:1] == [group] and len(location) > 1 and location[1] in by_name:
            del location[1]
    key = ".".join(str(part) for part in location)
    known = next((origins[k] for k in _parents(key) if k in origins), None)
    origin = f" ({known})" if known else ""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key {key}{origin}{_did_you_mean(key, values)}"
    if kind == "missing":
        return f"{key} is missing: {_help(key) or 'the recipe needs it'}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = variants()[key][0]
        given = _get(values, f"{key}.{tag}")
        origin = f" ({origins[f'{key}.{tag}']})" if f"{key}.{tag}" in origins else origin
        return f"{key}.{tag}={given}{origin} is none of {', '.join(sorted(variants()[key][1]))}"
    if kind == "literal_error":
        return f"{key}={_show(problem['input'])}{origin} is none of {context['expected']}"
    message = str(context["error"]) if kind == "value_error" and "error" in context else problem["msg"]
    if isinstance(problem["input"], dict) or not key:
        return f"{key or 'the recipe'}{origin} {message}" if key else message
    text = f"{key}={_show(problem['input'])}{origin}: {message[0].lower()}{message[1:]}"
    if isinstance(problem["input"], str) and "," in problem["input"]:
        text += "; several values at once are a sweep (launch sweep)"
    return text


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _parents(key: str) -> Iterator[str]:
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        yield ".".join(parts[:end])


def _did_you_mean(key: str, values: dict[str, Any]) -> str:
    everywhere = dict(all_keys(values))
    parent, _, leaf = key.rpartition(".")
    same_group = {k for k in everywhere if k.rpartition(".")[0] == parent}
    close = difflib.get_close_matches(key, same_group, n=1, cutoff=0.6)
    close += [k for k in everywhere if k.rpartition(".")[2] == leaf and k not in close]
    close = close or difflib.get_close_matches(key, everywhere, n=2, cutoff=0.7)
    if close:
        return f": did you mean {' or '.join(close[:3])}?"
    if parent and same_group:
        return f": {parent} has {', '.join(sorted(k.rpartition('.')[2] for k in same_group))}"
    return ""


def all_keys(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every dotted key a recipe with these values may have, with its meaning."""
    yield from _model_keys(Recipe, "", values)


def _model_keys(model: type[BaseModel], prefix: str, values: Any) -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field.description or ""
        inner = values.get(name) if isinstance(values, dict) else None
        classes = [c for c in (field.annotation, *get_args(field.annotation)) if isinstance(c, type)]
        groups = [c for c in classes if issubclass(c, BaseModel)]
        if not prefix and name in variants():
            tag, by_name = variants()[name]
            named = by_name.get(inner.get(tag)) if isinstance(inner, dict) else None
            groups = [named] if named else groups
        for group in groups:
            yield from _model_keys(group, f"{prefix}{name}.", inner)


def _help(key: str) -> str:
    return dict(all_keys({})).get(key, "")
