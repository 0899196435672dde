"""From `recipe=NAME a.b=value ...` to a validated `Recipe` that knows where each of its values came from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml
from pydantic import BaseModel, ValidationError

from recipes.schema.recipe import NOT_TRAINING, Recipe
from recipes.text import did_you_mean, near, suggestion
from recipes.yaml12 import UNREADABLE, Dumper, Loader

FOLDER = Path(__file__).parent
COMMAND_LINE = "command line"


class RecipeError(ValueError):
    """A recipe that cannot be used; the message lists every mistake, one a line."""


class Loaded(NamedTuple):
    recipe: Recipe
    origins: dict[str, str]
    """Dotted key -> where its value was set (a file and line, or the command line); defaults are not listed."""


@cache
def _files() -> dict[str, Path]:
    """The recipes that come with the program, by name; their folders only sort them."""
    return {path.stem: path for path in FOLDER.rglob("*.yaml")}


def names() -> list[str]:
    """Names of the recipes that come with the program."""
    return sorted(_files())


def load(argv: Iterable[str], given_in: Mapping[str, str] | None = None) -> Loaded:
    """Load the recipe that a command line names.

    argv: `recipe=NAME_OR_PATH` once, and any number of `a.b=value` overrides whose values are YAML.
    given_in: for keys that come from elsewhere (a sweep's file), from where.
    Raises RecipeError with all mistakes at once.
    """
    overrides = [split_argument(argument) for argument in argv]
    chosen = [value for key, value in overrides if key == "recipe"]
    if len(chosen) != 1:
        raise RecipeError(f"give one recipe=NAME; there are: {', '.join(names())}")
    above, origins = {}, {}
    for key, text in overrides:
        if key != "recipe":
            values, keys = _override(key, text, (given_in or {}).get(key, COMMAND_LINE))
            above = _merge(above, values)
            origins |= keys
    layers = [*_file_layers(_find(chosen[0], Path.cwd()), ()), (above, origins)]
    return _build(layers, default_name=Path(chosen[0]).stem)


def load_file(path: Path) -> Loaded:
    """Load a YAML file alone, as the resolved `recipe.yaml` of a run directory."""
    return _build([*_file_layers(path, ())], default_name=path.stem)


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_file` reads back to an equal recipe."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, width=110)


def digest(recipe: Recipe) -> str:
    """Hash (12 hex digits) of what defines the training; names, tracking and places are not in it.

    Values equal to their defaults are left out, so that a key added later with a default changes no hash.
    """
    content = recipe.model_dump(mode="json", exclude_defaults=True, exclude=set(NOT_TRAINING))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def parse_value(text: str) -> Any:
    """Read a command-line value as YAML 1.2: 1e-4 is a float, [4,5,3] a list, off a word."""
    return yaml.load(text, Loader)


def split_argument(argument: str) -> tuple[str, str]:
    """The key and the value of `key=value`."""
    key, equals, value = argument.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
        hint = f": did you mean {key.lstrip('-')}={value or '...'}?" if argument.startswith("-") else ""
        if argument in names() or Path(argument).exists():
            hint = f": did you mean recipe={argument}?"
        raise RecipeError(f"cannot read {argument!r}, arguments have the form key=value{hint}")
    return key, value


def _find(name: str, relative_to: Path, origin: str = "") -> Path:
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml") or "/" in name:
        path = relative_to / path
        if path.is_dir() and (path / "recipe.yaml").is_file():
            path = path / "recipe.yaml"
        if not path.is_file():
            raise RecipeError(f"no recipe file {path}{origin}")
        return path
    if name not in _files():
        raise RecipeError(f"no recipe {name!r}{origin}: {suggestion(name, names())}")
    return _files()[name]


Layer = tuple[dict[str, Any], dict[str, str]]
"""Nested values, and the origin of each dotted key among them."""


def _file_layers(path: Path, below: tuple[Path, ...]) -> Iterator[Layer]:
    """The layers of a YAML file, those of its `base` first."""
    path = path.resolve()
    if path in below:
        raise RecipeError(f"{path}: base goes round in a circle: {' -> '.join(p.stem for p in (*below, path))}")
    values, origins = read_file(path)
    base, origin = values.pop("base", []), origins.pop("base", "")
    parents = [base] if isinstance(base, str) else base
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise RecipeError(f"base={_show(base)} ({origin}) must be a recipe's name or a list of names")
    for parent in parents:
        yield from _file_layers(_find(parent, path.parent, f" ({origin})"), (*below, path))
    yield values, origins


def read_file(path: Path, what: str = "recipe") -> Layer:
    """The keys of a YAML file and the place of each; what it holds deeper down is shared, not to be changed."""
    shown = path.relative_to(FOLDER.parent) if path.is_relative_to(FOLDER.parent) else path
    try:
        values, origins = _parse_file(path.read_text(encoding="utf-8"), str(shown))
    except RecipeError:
        raise
    except UNREADABLE as error:
        raise RecipeError(f"cannot read {what} {shown}: {_problem(error)}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{shown} holds no keys: a {what} is a YAML mapping")
    return dict(values), dict(origins)


@lru_cache(maxsize=64)
def _parse_file(text: str, shown: str) -> tuple[Any, dict[str, str]]:
    origins: dict[str, str] = {}
    loader = Loader(text)
    node = loader.get_single_node()
    values = {} if node is None else loader.construct_document(node)
    _note_lines(node, shown, "", origins)
    return values, origins


def _problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error) or type(error).__name__
    return f"{problem} (line {mark.line + 1})" if mark and mark.line else problem


def _note_lines(node: yaml.Node | None, file: str, prefix: str, origins: dict[str, str]) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        dotted = f"{prefix}{key.value}"
        if dotted in origins:
            raise RecipeError(f"{file}:{key.start_mark.line + 1}: {dotted} stands twice (first in {origins[dotted]})")
        origins[dotted] = f"{file}:{key.start_mark.line + 1}"
        _note_lines(value, file, f"{dotted}.", origins)


@lru_cache(maxsize=4096)
def _override(key: str, text: str, origin: str) -> Layer:
    try:
        value = parse_value(text)
    except UNREADABLE as error:
        raise RecipeError(f"cannot read the value of {key}={text} ({origin}): {_problem(error)}") from error
    if isinstance(value, (int, float)) and not isinstance(value, bool) and takes_text(key):
        value = text
    layer: Any = value
    for part in reversed(key.split(".")):
        layer = {part: layer}
    return layer, dict.fromkeys([*_parents(key), *_keys(value, f"{key}.")], origin)


def takes_text(key: str) -> bool:
    """Whether a key is of text, as run.name: what looks like a number then keeps its spelling (1.10, 2024_01)."""
    fields, models = [], [Recipe]
    for part in key.split("."):
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        models = [group for field in fields for group in _groups_of(field)]
    return any(str in (field.annotation, *get_args(field.annotation)) for field in fields)


def _groups_of(field: Any) -> list[type[BaseModel]]:
    classes = [c for c in (field.annotation, *get_args(field.annotation)) if isinstance(c, type)]
    return [c for c in classes if issubclass(c, BaseModel)]


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
        values = _merge(values, layer) if layer else values
        origins.update(layer_origins)
    for group, (tag, _) in variants().items():
        default = Recipe.model_fields[group].default
        if isinstance(values.get(group), dict) and isinstance(default, BaseModel):
            values[group] = {tag: getattr(default, tag), **values[group]}
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems = dict.fromkeys(_explain(problem, values, origins) for problem in error.errors())
        raise RecipeError("\n".join(problems)) from None
    leaves = {key for key in _keys(values) if not isinstance(_get(values, key.split(".")), dict)}
    return Loaded(recipe, {key: origin for key, origin in origins.items() if key in leaves})


def _merge(below: Any, above: Any) -> Any:
    """above over below, key by key; an empty mapping takes all keys away, as in `model.activation_args={}`."""
    if isinstance(below, dict) and isinstance(above, dict) and above:
        return {**below, **{key: _merge(below.get(key), value) for key, value in above.items()}}
    return above


@cache
def variants() -> dict[str, tuple[str, dict[str, type[BaseModel]]]]:
    """For each group with variants: the key that names one, and the variants by name."""
    found = {}
    for group, field in Recipe.model_fields.items():
        inner = (getattr(extra, "discriminator", None) for extra in field.metadata)
        tag = next((name for name in (field.discriminator, *inner) if isinstance(name, str)), None)
        if tag:
            classes = get_args(field.annotation)
            found[group] = (tag, {n: cls for cls in classes for n in get_args(cls.model_fields[tag].annotation)})
    return found


def _leave_old_variant(values: dict[str, Any], origins: dict[str, str], layer: dict[str, Any]) -> None:
    """Where a layer picks another optimizer, schedule or source: drop the inherited keys that it does not have."""
    for group, (tag, by_name) in variants().items():
        above, below = layer.get(group), values.get(group)
        if (
            not isinstance(above, dict)
            or not isinstance(below, dict)
            or above.get(tag, below.get(tag)) == below.get(tag)
        ):
            continue
        if variant := _named(by_name, above[tag]):
            values[group] = {key: value for key, value in below.items() if key in variant.model_fields}


def _named(by_name: dict[str, type[BaseModel]], name: Any) -> type[BaseModel] | None:
    return by_name.get(name) if isinstance(name, str) else None


_NOTHING = object()


def _get(values: Any, path: Iterable[Any]) -> Any:
    """What stands at a path of keys and list indices, or _NOTHING."""
    for part in path:
        inside = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if not inside and not (isinstance(values, dict) and part in values):
            return _NOTHING
        values = values[part]
    return values


def _explain(problem: Any, values: dict[str, Any], origins: dict[str, str]) -> str:
    """One line for one of pydantic's errors: the key, its value, where it came from, what would be right."""
    kind, given, location = problem["type"], problem["input"], list(problem["loc"])
    group = location[0] if location and location[0] in variants() else None
    if group and len(location) > 1 and location[1] in variants()[group][1]:
        del location[1]
    if kind.startswith("union_tag"):
        location.append(variants()[location[0]][0])
        given = _get(values, location)
    elif kind != "missing":
        # pydantic adds the member of a union that it tried, as in activation_args.slope.float
        while location and _get(values, location) is _NOTHING:
            location.pop()
    key = ".".join(str(part) for part in location)
    origin = next((f" ({origins[k]})" for k in _parents(key) if k in origins), "")
    if kind == "extra_forbidden":
        return f"unknown key {key}{origin}{_did_you_mean(key, values)}"
    if kind == "missing":
        return f"{key} is missing: {dict(all_keys(values)).get(key) or 'the recipe needs it'}"
    if given is _NOTHING:
        return f"{key} is missing: one of {', '.join(sorted(variants()[location[0]][1]))}"
    what = f"{key}={_show(given)}{origin}"
    sweep = isinstance(given, str) and "," in given and COMMAND_LINE in origin
    also = "; several values at once are a sweep (launch sweep)" if sweep else ""
    if kind.startswith("union_tag"):
        return f"{what} is none of {', '.join(sorted(variants()[location[0]][1]))}{also}"
    if kind == "literal_error":
        return f"{what} is none of {problem['ctx']['expected']}{also}"
    if kind == "value_error":
        message = str(problem["ctx"]["error"])
        if isinstance(given, dict):
            return f"{key}{origin} {message}" if key else message
        return f"{what}: {message}{also}"
    if kind in ("model_type", "model_attributes_type"):
        name = variants()[key][0] if key in variants() else "name"
        hint = f": did you mean {key}.{name}={given}?" if isinstance(given, str) and (group or key == "model") else ""
        return f"{what} must be a group of keys{hint}{also}"
    if kind == "string_type" and not isinstance(given, (dict, list)):
        also = f", in quotes: {key}='\"{_show(given)}\"'" if COMMAND_LINE in origin else ", in quotes"
    return f"{what}: {problem['msg'][0].lower()}{problem['msg'][1:]}{also}"


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _parents(key: str) -> Iterator[str]:
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        yield ".".join(parts[:end])


def _did_you_mean(key: str, values: dict[str, Any]) -> str:
    everywhere = dict(all_keys(values))
    if key in everywhere:
        return ": in a file its groups are nested, not written with dots"
    group, _, rest = key.partition(".")
    tag, by_name = variants().get(group, ("", {}))
    if having := [name for name, variant in by_name.items() if rest in variant.model_fields]:
        return f": {group}.{tag}={_show(values[group][tag])} has no such key ({', '.join(having)} would)"
    parent, _, leaf = key.rpartition(".")
    same_group = {k.rpartition(".")[2]: k for k in everywhere if k.rpartition(".")[0] == parent}
    close = [same_group[name] for name in near(leaf, same_group, 1)]
    close += [k for k in everywhere if k.rpartition(".")[2] == leaf and k not in close]
    close = close or near(key, everywhere, 2, cutoff=0.7)
    if close:
        return f": {did_you_mean(close[:3])}"
    if parent and same_group:
        return f": {parent} has {', '.join(sorted(same_group))}"
    return ""


def all_keys(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every dotted key a recipe with these values may have, with its meaning."""
    yield from _model_keys(Recipe, "", values)


def _model_keys(model: type[BaseModel], prefix: str, values: Any) -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field.description or ""
        inner = values.get(name) if isinstance(values, dict) else None
        groups = _groups_of(field)
        if not prefix and name in variants():
            tag, by_name = variants()[name]
            named = _named(by_name, inner.get(tag)) if isinstance(inner, dict) else None
            groups = [named] if named else groups
        for group in groups:
            yield from _model_keys(group, f"{prefix}{name}.", inner)
