"""Code of the user's own, checked without being run: its file is read as text, and no module is imported."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from recipes.plugin_files import copy_of
from recipes.schema.plugins import CALLBACK_METHODS, PluginFields
from recipes.schema.recipe import Recipe
from recipes.text import listed, show, suggestion


class _Role(NamedTuple):
    """What the program calls a plugin with, and what a class of that kind has to have.

    Of methods, what they are called with.
    """

    positional: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    all_of: Mapping[str, tuple[str, ...]] = {}
    any_of: Mapping[str, tuple[str, ...]] = {}


_CALLBACK_CALLS = ("step", "model"), ("step", "result"), (), ("state",)
_ROLES = {
    "model.plugin": _Role(keywords=("num_classes", "in_channels"), all_of={"forward": ("images",)}),
    "data.plugin": _Role(keywords=("train",), all_of={"__len__": (), "read": ("index",), "describe": ("index",)}),
    "plugins.loss": _Role(positional=("logits", "targets")),
    "plugins.metrics": _Role(positional=("logits", "targets")),
    "plugins.callbacks": _Role(any_of=dict(zip(CALLBACK_METHODS, _CALLBACK_CALLS, strict=True))),
}
_PLAIN: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
"""Annotations that a value of YAML is held against."""
_OURS = ("recipes", "resnet", "launch", "slurm")


def check_plugin_code(recipe: Recipe) -> None:
    """Raise ValueError, with all that is wrong, where a recipe's plugins cannot be called as they will be."""
    problems = []
    for key, (plugin, file) in sources(recipe).items():
        role = _ROLES[".".join(key.split(".")[:2])]
        try:
            problems += [f"{key}={plugin.path}: {problem}" for problem in _problems(plugin, file, role)]
        except OSError as error:
            problems.append(f"{key}={plugin.path}: {error}")
        except (RecursionError, MemoryError):
            problems.append(f"{key}={plugin.path}: {file.name} is nested too deeply to be read")
    if problems:
        raise ValueError("\n".join(problems))


def sources(recipe: Recipe) -> dict[str, tuple[PluginFields, Path]]:
    """By key, each plugin of a recipe with its file. Raises ValueError, with all of them, where files are not there."""
    found, missing = {}, []
    for key, plugin in recipe.plugins_named().items():
        try:
            found[key] = plugin, _source_of(plugin)
        except (OSError, ImportError) as error:
            missing.append(f"{key}={plugin.path}: {error}{_kept(plugin, recipe)}")
    if missing:
        raise ValueError("\n".join(missing))
    return found


def _kept(plugin: PluginFields, recipe: Recipe) -> str:
    """What to do where the run has kept a copy of the file."""
    run_dir = Path(recipe.run.root).expanduser() / (recipe.run.name or "")
    there = recipe.run.name and plugin.file and copy_of(plugin, run_dir).is_file()
    return f"; the run has kept a copy, which recipe={run_dir} takes" if there else ""


def _source_of(plugin: PluginFields) -> Path:
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


def _problems(plugin: PluginFields, file: Path, role: _Role) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else f": {error}"
        yield f"{file.name}{line}"
        return
    if plugin.file and (beside := _imports_beside(tree, file)):
        yield (
            f"{file.name} imports {listed(beside)}, beside it: a run takes a copy of this file alone, so put all into "
            "one file, or install a package and name package.module:NAME"
        )
    names = _defined(tree)
    if plugin.name not in names:
        if "*" not in names and "__getattr__" not in names:
            yield f"{file.name} has no {plugin.name}" + (f": {suggestion(plugin.name, names)}" if names else "")
        return
    # Where branches define it in several ways, that of this machine is not known.
    if len(names[plugin.name]) > 1:
        return
    node = names[plugin.name][0]
    if isinstance(node, ast.ClassDef):
        yield from _of_class(node, plugin, role)
    elif isinstance(node, ast.AsyncFunctionDef):
        yield f"{plugin.name} is async, and is called without await"
    elif isinstance(node, ast.FunctionDef) and not node.decorator_list:
        yield from _of_call(node.args, plugin, role)
    elif isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, (ast.Constant, ast.List, ast.Dict)):
        yield f"{plugin.name} is {show(ast.unparse(node.value))}, which cannot be called"


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


def _defined(tree: ast.Module | ast.ClassDef) -> dict[str, list[ast.AST]]:
    """Names that a module or class has, each with what gives it; of branches, those of all."""
    found: dict[str, list[ast.AST]] = {}
    open_nodes: list[ast.AST] = [*tree.body]
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.alias):
            found.setdefault((node.asname or node.name).partition(".")[0], []).append(node)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for name in (each for each in ast.walk(target) if isinstance(each, ast.Name)):
                    found.setdefault(name.id, []).append(node if name is target else name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.setdefault(node.id, []).append(node)
        elif not isinstance(node, ast.AnnAssign):
            open_nodes += ast.iter_child_nodes(node)
    return found


def _of_class(node: ast.ClassDef, plugin: PluginFields, role: _Role) -> Iterator[str]:
    methods = _defined(node)
    inherits = bool(node.bases or node.keywords or node.decorator_list)
    if role.positional and not node.decorator_list and not node.keywords and "__new__" not in methods:
        called = f"({', '.join(role.positional)})"
        yield f"{node.name} is a class, and what is called with {called} is a function (or an object of a class)"
        return
    if not inherits and (missing := [name for name in role.all_of if name not in methods]):
        yield f"{node.name} has no {listed(missing)}"
    if not inherits and role.any_of and not {*role.any_of} & {*methods}:
        yield f"{node.name} has none of {', '.join(role.any_of)}"
    for name, given in {**role.all_of, **role.any_of}.items():
        if len(found := methods.get(name, [])) == 1:
            yield from _of_method(found[0], f"{node.name}.{name}", given)
    makers = methods.get("__init__", [])
    if len(makers) == 1 and isinstance(makers[0], ast.FunctionDef) and not makers[0].decorator_list:
        yield from _of_call(_without_self(makers[0].args), plugin, role)
    elif not makers and not inherits:
        yield from _of_call(ast.arguments([], [], None, [], [], None, []), plugin, role)


def _without_self(arguments: ast.arguments) -> ast.arguments:
    """Those of a method as it is called on an object."""
    first = arguments.posonlyargs[1:] if arguments.posonlyargs else []
    rest = arguments.args if arguments.posonlyargs else arguments.args[1:]
    return ast.arguments(
        first, rest, arguments.vararg, arguments.kwonlyargs, arguments.kw_defaults, arguments.kwarg, arguments.defaults
    )


def _of_method(method: ast.AST, name: str, given: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with a method that is called with so many arguments, in their order."""
    if isinstance(method, ast.AsyncFunctionDef):
        yield f"{name} is async, and is called without await"
    if not isinstance(method, ast.FunctionDef) or method.decorator_list:
        return
    arguments = _without_self(method.args)
    taken = [one.arg for one in (*arguments.posonlyargs, *arguments.args)]
    too_many = len(taken) - len(arguments.defaults) > len(given) or None in arguments.kw_defaults
    if too_many or (len(taken) < len(given) and arguments.vararg is None):
        yield f"{name} is called with ({', '.join(given)}), and takes ({', '.join(taken)})"


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
