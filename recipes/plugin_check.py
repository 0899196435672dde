"""Code of the user's own, checked without being run: its file is read as text, and no module is imported."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from recipes.schema.plugins import CALLBACK_METHODS, PluginFields
from recipes.schema.recipe import Recipe
from recipes.text import listed, show, suggestion


class _Role(NamedTuple):
    """What the program calls a plugin with, and what a class of that kind has to have."""

    positional: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    all_of: tuple[str, ...] = ()
    any_of: tuple[str, ...] = ()


_ROLES = {
    "model.plugin": _Role(keywords=("num_classes", "in_channels"), all_of=("forward",)),
    "data.plugin": _Role(keywords=("train",), all_of=("__len__", "read", "describe")),
    "plugins.loss": _Role(positional=("logits", "targets")),
    "plugins.metrics": _Role(positional=("logits", "targets")),
    "plugins.callbacks": _Role(any_of=CALLBACK_METHODS),
}
_PLAIN: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
"""Annotations that a value of YAML is held against."""
_OURS = ("recipes", "resnet", "launch", "slurm")


def check_plugin_code(recipe: Recipe) -> None:
    """Raise ValueError, with all that is wrong, where a recipe's plugins cannot be called as they will be."""
    problems = []
    for key, plugin in recipe.plugins_named().items():
        try:
            role = _ROLES[".".join(key.split(".")[:2])]
            problems += [f"{key}={plugin.path}: {problem}" for problem in _problems(plugin, role)]
        except (OSError, ImportError) as error:
            problems.append(f"{key}={plugin.path}: {error}")
    if problems:
        raise ValueError("\n".join(problems))


def source_of(plugin: PluginFields) -> Path:
    """The file of a plugin. Raises ImportError where there is none; no package of its module is imported."""
    if plugin.file:
        if not plugin.file.is_file():
            there = [file.name for file in plugin.file.parent.glob("*.py")]
            hint = f": {suggestion(plugin.file.name, there)}" if there else ""
            raise ImportError(f"there is no file {plugin.file.absolute()}{hint}")
        return plugin.file
    assert plugin.module
    first, *inner = plugin.module.split(".")
    spec, name = importlib.util.find_spec(first), first
    for part in inner:
        name = f"{name}.{part}"
        places = spec and spec.submodule_search_locations
        spec = importlib.machinery.PathFinder.find_spec(name, [*places]) if places else None
    if spec is None or spec.origin is None:
        raise ImportError(f"no module {plugin.module} can be imported here: install its package")
    return Path(spec.origin)


def _problems(plugin: PluginFields, role: _Role) -> Iterator[str]:
    file = source_of(plugin)
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else f": {error}"
        yield f"{file.name}{line}"
        return
    if plugin.file and (beside := _imports_beside(tree, file)):
        yield (
            f"{file.name} imports {listed(beside)}, beside it: a run takes a copy of this file alone, so put all into "
            "one file, or install a package and name package.module:NAME"
        )
    names = dict(_top_level(tree.body))
    if plugin.name not in names:
        if "*" not in names and "__getattr__" not in names:
            yield f"{file.name} has no {plugin.name}" + (f": {suggestion(plugin.name, names)}" if names else "")
        return
    node = names[plugin.name]
    if isinstance(node, ast.ClassDef):
        yield from _of_class(node, plugin, role)
    elif isinstance(node, ast.FunctionDef) and not node.decorator_list:
        yield from _of_call(node.args, plugin, role)


def _imports_beside(tree: ast.Module, file: Path) -> list[str]:
    """Modules that a file imports and that lie in its folder."""
    found: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            named = [node.module or node.names[0].name]
            if node.level:
                found["." * node.level + named[0]] = None
                continue
        elif isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        else:
            continue
        for first in (name.partition(".")[0] for name in named):
            if first not in _OURS and any(
                (file.parent / place).is_file() for place in (f"{first}.py", f"{first}/__init__.py")
            ):
                found[first] = None
    return [*found]


def _top_level(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Names that a module has, each with what gives it; of branches, those of all."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (((alias.asname or alias.name).partition(".")[0], node) for alias in node.names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (
                (name.id, node) for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)
            )
        for inner in ("body", "orelse", "finalbody"):
            if isinstance(node, (ast.If, ast.Try, ast.With)):
                yield from _top_level(getattr(node, inner, []))
        for handler in getattr(node, "handlers", []):
            yield from _top_level(handler.body)


def _of_class(node: ast.ClassDef, plugin: PluginFields, role: _Role) -> Iterator[str]:
    methods = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
    inherits = bool(node.bases or node.decorator_list)
    if not inherits and (missing := [name for name in role.all_of if name not in methods]):
        yield f"{node.name} has no {listed(missing)}"
    if not inherits and role.any_of and not {*role.any_of} & {*methods}:
        yield f"{node.name} has none of {', '.join(role.any_of)}"
    if "__init__" in methods:
        arguments = methods["__init__"].args
        own = (arguments.posonlyargs or arguments.args)[:1]
        for several in (arguments.posonlyargs, arguments.args):
            if several[:1] == own:
                del several[0]
                break
        yield from _of_call(arguments, plugin, role)
    elif not inherits:
        yield from _of_call(ast.parse("lambda: 0", mode="eval").body.args, plugin, role)  # pyright: ignore[reportAttributeAccessIssue]


def _of_call(arguments: ast.arguments, plugin: PluginFields, role: _Role) -> Iterator[str]:
    """What is wrong with a call of a function, in words."""
    in_order = [*arguments.posonlyargs, *arguments.args]
    if len(in_order) < len(role.positional) and arguments.vararg is None:
        yield f"{plugin.name} is called with ({', '.join(role.positional)}), and takes {len(in_order) or 'none'}"
        return
    by_name = {one.arg: one for one in [*in_order[len(role.positional) :], *arguments.kwonlyargs]}
    for name in role.keywords:
        if name not in by_name and arguments.kwarg is None:
            yield f"{plugin.name} is called with {', '.join(role.keywords)}, and has no parameter {name}"
    own = {name: one for name, one in by_name.items() if name not in role.keywords}
    for name, value in plugin.args.items():
        if name in (*role.keywords, *role.positional):
            yield f"args.{name}: the program gives {name} itself"
        elif name in own:
            yield from _of_value(own[name], value)
        elif arguments.kwarg is None:
            yield f"{plugin.name} has no parameter {name}" + (f": {suggestion(name, own)}" if own else "")
    optional = {one.arg for one in in_order[len(in_order) - len(arguments.defaults) :]}
    optional |= {one.arg for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default}
    if missing := [name for name in own if name not in optional and name not in plugin.args]:
        yield f"{plugin.name} needs {listed(missing)} among its args"


def _of_value(parameter: ast.arg, value: Any) -> Iterator[str]:
    """What is wrong with a value where the parameter's annotation is plain, as int or float | None."""
    if parameter.annotation is None:
        return
    text = ast.unparse(parameter.annotation).strip("'\"")
    kinds = [kind.strip() for kind in text.split("|")]
    if not {*kinds} <= {*_PLAIN, "None"} or (value is None and "None" in kinds):
        return
    taken = tuple(kind for name in kinds for kind in _PLAIN.get(name, ()))
    if not isinstance(value, taken) or (isinstance(value, bool) and bool not in taken):
        yield f"args.{parameter.arg}={show(value)} is no {text}"
