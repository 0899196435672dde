"""From `recipe=NAME a.b=value ...` to a validated `Recipe` that knows where each of its values came from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError

from recipes.errors import COMMAND_LINE, RecipeError, explain, location_of
from recipes.keys import fields_of, keep_spelling, parents, variant_named, variants
from recipes.library import FOLDER, all_names, file_of, shipped
from recipes.nested import NOTHING, merge, nest, value_at, without
from recipes.plugin_files import naming_copies
from recipes.schema.model import OF_NETS
from recipes.schema.plugins import PLUGINS, with_paths
from recipes.schema.recipe import NOT_IN_DIGEST, Recipe
from recipes.text import did_you_mean, show, suggestion
from recipes.versions import FORMAT, keep_unknown, lifted, may_be_newer
from recipes.yaml12 import UNREADABLE, Dumper, Loader


class Loaded(NamedTuple):
    recipe: Recipe
    origins: dict[str, str]
    """Dotted key -> where its value was set (a file and line, or the command line); defaults are not listed."""
    notes: tuple[str, ...] = ()
    """What the user should know of how it was read."""


def load(argv: Iterable[str], given_in: Mapping[str, str] | None = None) -> Loaded:
    """Load the recipe that a command line names.

    argv: `recipe=NAME_OR_PATH` once, and any number of `a.b=value` overrides whose values are YAML.
    given_in: for keys that come from elsewhere (a sweep's file), from where.
    Raises RecipeError with all mistakes at once.
    """
    overrides = [split_argument(argument) for argument in argv]
    chosen = [value for key, value in overrides if key == "recipe"]
    if len(chosen) != 1:
        raise RecipeError(f"give one recipe=NAME; there are: {', '.join(all_names())}")
    given = given_in or {}
    layers = [_override(key, text, given.get(key, COMMAND_LINE)) for key, text in overrides if key != "recipe"]
    return _load_under(chosen[0], layers)


def load_over(name: str, values: Mapping[str, Any], origin: str, argv: Iterable[str]) -> Loaded:
    """Load the recipe of a name, if it is one that comes with the program, with values over it, and `argv` over these.

    values: groups of keys. origin: where they are from, for messages. Raises RecipeError with all mistakes at once.
    """
    layers = [*_file_layers(shipped()[name], ())] if name in shipped() else []
    layers += [_layer(key, value, origin) for key, value in values.items()]
    layers.append(_as_one(_override(*split_argument(argument), COMMAND_LINE) for argument in argv))
    return _build(layers, default_name=name)


def load_values(source: str | Path, changes: Mapping[str, Any] | None = None) -> Loaded:
    """Load a recipe by name or path, with changes whose values are Python's: `{"optimizer.lr": 0.1}`.

    source: a recipe's name, a YAML file, or a run directory. changes: dotted keys, or nested mappings.
    Raises RecipeError with all mistakes at once.
    """
    name = str(source.absolute()) if isinstance(source, Path) else source
    return _load_under(name, [_layer(key, _plain(value), "given here") for key, value in (changes or {}).items()])


def _load_under(name: str, changes: Iterable[_Layer]) -> Loaded:
    """The recipe of a name or path, with the changes over it."""
    path = _find(name, Path.cwd())
    return _moved(_build([*_file_layers(path, ()), _as_one(changes)], default_name=Path(name).stem), path)


def _as_one(changes: Iterable[_Layer]) -> _Layer:
    """Changes as one layer, so that their order does not matter where one of them picks another variant."""
    above, origins = {}, {}
    for layer in changes:
        above = merge(above, layer.values)
        origins |= layer.origins
    return _Layer(above, origins)


def load_file(path: Path) -> Loaded:
    """Load a YAML file alone, as the resolved `recipe.yaml` of a run directory."""
    return _moved(_build([*_file_layers(path, ())], default_name=path.stem), path)


def _moved(loaded: Loaded, path: Path) -> Loaded:
    """With plugins by the run's own copies of their files, where it is the recipe of a run that was moved."""
    if path.name != "recipe.yaml" or not (path.parent / PLUGINS).is_dir():
        return loaded
    return loaded._replace(recipe=naming_copies(loaded.recipe, path.parent, only_lost=True))


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_file` reads back to an equal recipe."""
    return to_yaml(recipe.model_dump(mode="json"))


def run_recipe_text(recipe: Recipe, file: Path) -> str:
    """What a run's own recipe.yaml is to hold: the recipe, and what a newer program has put there.

    file: the one that is to be written.
    """
    content = {"format": FORMAT, **recipe.model_dump(mode="json")}
    if file.is_file():
        content = keep_unknown(content, read_file(file)[0])
    return to_yaml(content)


def to_yaml(content: dict[str, Any]) -> str:
    """Keys of a recipe, in their order, as a YAML file."""
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, width=110)


def digest(recipe: Recipe) -> str:
    """Hash (12 hex digits) of what defines the training; names, tracking and places are not in it.

    Values equal to their defaults are left out, so that a key added later with a default changes no hash.
    """
    placed = with_paths(recipe, lambda plugin: plugin.place)
    content = placed.model_dump(mode="json", exclude_defaults=True, exclude=NOT_IN_DIGEST)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def parse_value(text: str, annotations: Sequence[Any] = ()) -> Any:
    """Read a command-line value as YAML 1.2: 1e-4 is a float, [4,5,3] a list, off a word.

    annotations: what the value may be; where that is text only, what looks like a number keeps its spelling.
    """
    loader = Loader(text)
    node = loader.get_single_node()
    keep_spelling(node, list(annotations))
    return None if node is None else loader.construct_document(node)


def split_argument(argument: str) -> tuple[str, str]:
    """The key and the value of `key=value`."""
    key, equals, value = argument.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
        hint = f": did you mean {key.lstrip('-')}={value or '...'}?" if argument.startswith("-") else ""
        if file_of(argument) or Path(argument).exists():
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
    # Of a shipped recipe's base another file would make another recipe.
    found = shipped().get(name) if relative_to.is_relative_to(FOLDER) else file_of(name)
    if found is None:
        form = "" if origin else "recipe="
        beside = [f"{form}{file}" for file in (f"{name}.yaml", f"./{name}") if _is_recipe(relative_to / file)]
        raise RecipeError(
            f"no recipe {name!r}{origin}: {did_you_mean(beside) if beside else suggestion(name, all_names())}"
        )
    return found


def _is_recipe(path: Path) -> bool:
    return path.is_file() or (path / "recipe.yaml").is_file()


class _Layer(NamedTuple):
    values: dict[str, Any]
    origins: dict[str, str]
    """Of each dotted key among the values."""
    may_be_newer: bool = False
    """Whether unknown keys are to be ignored, as another version wrote them."""


def _file_layers(path: Path, below: tuple[Path, ...]) -> Iterator[_Layer]:
    """The layers of a YAML file, those of its `base` first."""
    path = path.resolve()
    if path in below:
        raise RecipeError(f"{path}: base goes round in a circle: {' -> '.join(p.stem for p in (*below, path))}")
    values, origins = read_file(path)
    newer, values = may_be_newer(path, values), lifted(values)
    base, origin = values.pop("base", []), origins.pop("base", "")
    parents = [base] if isinstance(base, str) else base
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise RecipeError(f"base={show(base)} ({origin}) must be a recipe's name or a list of names")
    for parent in parents:
        yield from _file_layers(_find(parent, path.parent, f" ({origin})"), (*below, path))
    if isinstance(evidence := values.get("evidence"), dict):
        # A recipe that names this one as its base may train something else.
        values["evidence"] = {"recipe": values.get("name", path.stem), **evidence}
        origins.setdefault("evidence.recipe", origins["evidence"])
    yield _Layer(values, origins, newer)


def read_file(path: Path, what: str = "recipe") -> tuple[dict[str, Any], dict[str, str]]:
    """The keys of a YAML file and the place of each; what it holds deeper down is shared, not to be changed."""
    shown = path.relative_to(FOLDER.parent) if path.is_relative_to(FOLDER.parent) else path
    try:
        values, origins = _parse_file(path.read_text(encoding="utf-8"), str(shown), what == "recipe")
    except RecipeError:
        raise
    except UNREADABLE as error:
        raise RecipeError(f"cannot read {what} {shown}: {_problem(error)}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{shown} holds no keys: a {what} is a YAML mapping")
    return dict(values), dict(origins)


@lru_cache(maxsize=256)
def _parse_file(text: str, shown: str, is_recipe: bool) -> tuple[Any, dict[str, str]]:
    origins: dict[str, str] = {}
    loader = Loader(text)
    node = loader.get_single_node()
    keep_spelling(node, [Recipe] if is_recipe else [])
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
            raise RecipeError(f"{file}:{key.start_mark.line + 1}: {dotted} is given twice (first in {origins[dotted]})")
        origins[dotted] = f"{file}:{key.start_mark.line + 1}"
        _note_lines(value, file, f"{dotted}.", origins)


@lru_cache(maxsize=4096)
def _override(key: str, text: str, origin: str) -> _Layer:
    try:
        value = parse_value(text, [field.annotation for field in fields_of(key)])
    except UNREADABLE as error:
        raise RecipeError(f"cannot read the value of {key}={text} ({origin}): {_problem(error)}") from error
    return _layer(key, value, origin)


def _layer(key: str, value: Any, origin: str) -> _Layer:
    """A value under its dotted key."""
    return _Layer(nest(key.split("."), value), dict.fromkeys([*parents(key), *_keys(value, f"{key}.")], origin))


def _plain(value: Any) -> Any:
    """A Python value as YAML would have given it: lists for tuples, text for paths, mappings for groups of keys."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _keys(values: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")


def _build(layers: list[_Layer], default_name: str) -> Loaded:
    values: dict[str, Any] = {"name": default_name}
    origins: dict[str, str] = {}
    for layer in layers:
        _leave_old_variant(values, origins, layer.values)
        values = merge(values, layer.values) if layer.values else values
        origins.update(layer.origins)
    for group, (tag, _) in variants().items():
        default = Recipe.model_fields[group].default
        if isinstance(values.get(group), dict) and isinstance(default, BaseModel):
            values[group] = {tag: getattr(default, tag), **values[group]}
    notes = []
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        values, notes = _without_ignored(values, error, layers)
        try:
            recipe = Recipe.model_validate(values)
        except ValidationError as left:
            problems = dict.fromkeys(explain(problem, values, origins) for problem in left.errors())
            raise RecipeError("\n".join(problems)) from None
    leaves = {key for key in _keys(values) if not isinstance(value_at(values, key.split(".")), dict)}
    return Loaded(recipe, {key: origin for key, origin in origins.items() if key in leaves}, tuple(notes))


def _without_ignored(
    values: dict[str, Any], error: ValidationError, layers: list[_Layer]
) -> tuple[dict[str, Any], list[str]]:
    """The values without unknown keys that another version wrote, and a note that names them."""
    ignored = []
    for problem in error.errors():
        path = location_of(problem, values)
        if problem["type"] == "extra_forbidden" and _is_ignored(path, layers):
            ignored.append(".".join(str(part) for part in path))
            values = without(values, path)
    return values, [f"ignored, as this version does not know them: {', '.join(ignored)}"] if ignored else []


def _is_ignored(path: list[Any], layers: list[_Layer]) -> bool:
    """Whether no layer gives a key but those that another version may have written."""
    given = [layer.may_be_newer for layer in layers if value_at(layer.values, path) is not NOTHING]
    return bool(given) and all(given)


def _leave_old_variant(values: dict[str, Any], origins: dict[str, str], layer: dict[str, Any]) -> None:
    """Where a layer picks another optimizer, schedule or source: drop the inherited keys that it does not have.

    So it is with a network of the user's own, but for weights and what freezes them, which are refused.
    """
    for group, (tag, by_name) in variants().items():
        above, below = layer.get(group), values.get(group)
        if (
            not isinstance(above, dict)
            or not isinstance(below, dict)
            or above.get(tag, below.get(tag)) == below.get(tag)
        ):
            continue
        if variant := variant_named(by_name, above[tag]):
            kept = variant.model_fields.keys() - getattr(variant, "own", ())
            values[group] = {key: value for key, value in below.items() if key in kept}
    above, below = layer.get("model"), values.get("model")
    if isinstance(above, dict) and above.get("plugin") and isinstance(below, dict):
        values["model"] = {key: value for key, value in below.items() if key not in OF_NETS}
