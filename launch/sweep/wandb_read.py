"""Sweeps in the file format of Weights & Biases, read without it (docs.wandb.ai/models/sweeps/sweep-config-keys)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from launch.sweep.grammar import number_text, spaced
from launch.sweep.points import search_bounds
from launch.sweep.sweep_types import Distribution, HalvingRule, Sweep, Values
from launch.sweep.words import parted, read_words, refuse_without_effect
from recipes.errors import RecipeError
from recipes.keys import ALIASES
from recipes.load import read_file
from recipes.metric import METRICS
from recipes.text import suggestion
from recipes.yaml12 import Dumper

METHODS = ("grid", "random", "bayes")
USED = ("method", "parameters", "metric", "early_terminate", "run_cap", "name", "description", "project", "entity")
NOT_USED = ("program", "command", "job", "image_uri", "controller", "apiVersion", "kind")
"""Keys that say where and how W&B runs a trial."""

GROUP_ALIASES = {"optimizer": "optimizer.name", "model": "model.name", "architecture": "model.name"}
"""The same, where the values are words and not groups of keys."""

METRIC_NAMES = {"loss": "loss", "acc": "top1", "accuracy": "top1"} | {
    f"{before}{k}{after}": f"top{k}" for k in (1, 5) for before in ("top", "acc") for after in ("", "acc", "accuracy")
}
"""What a metric's name may be, without `val/` and punctuation."""

_BASES = {
    "uniform": ("min", "max"),
    "log_uniform": ("min", "max"),
    "log_uniform_values": ("min", "max"),
    "normal": ("mu", "sigma"),
    "log_normal": ("mu", "sigma"),
    "beta": ("a", "b"),
}
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "constant": ("value",),
    "categorical": ("values", "probabilities"),
    "categorical_w_probabilities": ("values", "probabilities"),
    "int_uniform": ("min", "max"),
    **_BASES,
    **{f"q_{name}": (*keys, "q") for name, keys in _BASES.items()},
    "inv_log_uniform": ("min", "max"),
    "inv_log_uniform_values": ("min", "max"),
}
"""By name: the keys that go with it."""
DEFAULTS = {"q": 1, "mu": 0, "sigma": 1, "a": 1, "b": 1}


class _File(NamedTuple):
    """A sweep file while it is read."""

    content: dict[str, Any]
    places: dict[str, str]
    """Dotted key -> file and line."""
    notes: list[str]
    mistakes: list[str]

    def at(self, key: str) -> str:
        return f"{key} ({self.places[key]})" if key in self.places else key


def from_file(path: Path, words: Iterable[str] = ()) -> Sweep:
    """The sweep of a file; words of the command line, as for `sweep.from_words`, replace its parameters or add some.

    Raises RecipeError with all mistakes at once; names that no recipe has are found by `sweep.trials`.
    """
    file = _File(*read_file(path, "sweep"), [], [])
    _top(file)
    given, origins = _parameters(file)
    metric, rule = _attempt(file, _metric, file), _attempt(file, _halving, file)
    try:
        replacing, word_notes = read_words(words)
        for name in ("project", "entity"):
            if file.content.get(name) is not None:
                given[f"wandb.{name}"] = Values((_text(file.content[name]),))
                origins[f"wandb.{name}"] = file.places[name]
        kept = {key: values for key, values in given.items() if key not in replacing}
        origins = {key: place for key, place in origins.items() if key in kept}
        parts = parted({**kept, **replacing})
    except RecipeError as error:
        raise RecipeError("\n".join([*file.mistakes, str(error)])) from None
    if file.mistakes:
        raise RecipeError("\n".join(file.mistakes))
    name, description = (str(file.content[key]) if key in file.content else None for key in ("name", "description"))
    return Sweep(
        file.content["method"],
        *parts,
        metric=metric,
        early_stop=rule,
        run_cap=file.content.get("run_cap"),
        name=name,
        description=description,
        origins=origins,
        notes=(*file.notes, *word_notes),
    )


def _attempt(file: _File, read: Any, *arguments: Any) -> Any:
    """What `read` returns, or None after noting its mistake."""
    try:
        return read(*arguments)
    except RecipeError as error:
        file.mistakes.append(str(error))
        return None


def _top(file: _File) -> None:
    content = file.content
    for key in content:
        if key not in USED + NOT_USED:
            file.mistakes.append(f"unknown key {file.at(str(key))}{_near(str(key), USED, 'a sweep has')}")
    if ignored := [key for key in NOT_USED if key in content]:
        file.notes.append(f"{', '.join(ignored)}: not used, the recipe says what is run")
    if content.get("method") not in METHODS:
        file.mistakes.append(f"{file.at('method')}: {_text(content.get('method'))} is none of {', '.join(METHODS)}")
    for key, needs in (("method", content.get("method") == "bayes"), ("early_terminate", "early_terminate" in content)):
        if needs and "metric" not in content:
            file.mistakes.append(f"{file.at(key)} needs a metric, as in metric: {{name: val/top1, goal: maximize}}")
    cap = content.get("run_cap", 1)
    if not (_is_whole(cap) and cap > 0):
        file.mistakes.append(f"{file.at('run_cap')}: {_text(cap)} must be a whole number above 0")


# Parameters


def _parameters(file: _File) -> tuple[dict[str, Values | Distribution], dict[str, str]]:
    """Recipe key -> its values or distribution, and -> its place."""
    given: dict[str, Values | Distribution] = {}
    origins: dict[str, str] = {}
    parameters = file.content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        what = ": {optimizer.lr: {values: [0.1, 0.2]}}"
        file.mistakes.append(f"{file.at('parameters')} must say what is swept, as in parameters{what}")
        return given, origins
    for name, content, where in _unnested(parameters, "", "parameters"):
        found = _attempt(file, _parameter, file, name, content, where)
        if found is None:
            continue
        key = _recipe_key(file, name, found)
        if key in given:
            file.mistakes.append(f"{file.at(where)} gives {key} again")
        given[key] = found
        origins[key] = file.places.get(where, where)
    return given, origins


def _unnested(parameters: dict[Any, Any], prefix: str, where: str) -> Iterator[tuple[str, Any, str]]:
    """Dotted name, content, and dotted key in the file."""
    for name, content in parameters.items():
        if isinstance(content, dict) and isinstance(content.get("parameters"), dict) and len(content) == 1:
            yield from _unnested(content["parameters"], f"{prefix}{name}.", f"{where}.{name}.parameters")
        else:
            yield f"{prefix}{name}", content, f"{where}.{name}"


def _recipe_key(file: _File, name: str, found: Values | Distribution) -> str:
    key = ALIASES.get(name, name)
    if isinstance(found, Values) and not any(text.startswith("{") for text in found.texts):
        key = GROUP_ALIASES.get(name, key)
    if key != name:
        file.notes.append(f"{name} is read as {key}")
    return key


def _parameter(file: _File, name: str, content: Any, where: str) -> Values | Distribution:
    at = file.at(where)
    if not re.fullmatch(r"[A-Za-z_][\w.]*", name):
        raise RecipeError(f"{at}: a recipe's keys are of letters, digits, _ and dots, as in optimizer.lr")
    if not isinstance(content, dict):
        right = f"{{values: {_text(content)}}}" if isinstance(content, list) else f"{{value: {_text(content)}}}"
        raise RecipeError(f"{at}: {_text(content)} must be written as {right}")
    distribution = _distribution_name(at, content)
    allowed = ("distribution", *DISTRIBUTIONS[distribution])
    for key in content:
        if key not in allowed:
            raise RecipeError(f"{at}: unknown key {key}{_near(str(key), allowed, f'{distribution} has')}")
    for key in DISTRIBUTIONS[distribution]:
        if key not in content and key not in DEFAULTS and key != "probabilities":
            raise RecipeError(f"{at}: {distribution} needs {key}")
    found = _read(at, name, distribution, content)
    if distribution in ("log_uniform", "q_log_uniform", "inv_log_uniform") and isinstance(found, Distribution):
        low, high = (f"{bound:.4g}" for bound in search_bounds(found))
        file.notes.append(f"{name}: min and max of {distribution} are exponents of e, the values are {low} to {high}")
    return _for_grid(at, distribution, found) if file.content.get("method") == "grid" else found


def _distribution_name(at: str, content: dict[str, Any]) -> str:
    """The distribution, or what W&B takes where none is named."""
    name = content.get("distribution")
    if name is not None:
        if name not in DISTRIBUTIONS:
            raise RecipeError(f"{at}: no distribution {_text(name)}{_near(str(name), DISTRIBUTIONS, 'there are')}")
        return name
    for key, implied in (("values", "categorical"), ("value", "constant")):
        if key in content:
            return implied
    if "min" in content and "max" in content:
        return "int_uniform" if _is_whole(content["min"]) and _is_whole(content["max"]) else "uniform"
    raise RecipeError(f"{at}: give value, values, min and max, or a distribution")


def _read(at: str, name: str, distribution: str, content: dict[str, Any]) -> Values | Distribution:
    if distribution in ("constant", "categorical", "categorical_w_probabilities"):
        return _values(at, name, content)
    settings = {key: content.get(key, DEFAULTS.get(key)) for key in DISTRIBUTIONS[distribution]}
    for key, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise RecipeError(f"{at}: {key}: {_text(value)} must be a number")
        if (key in ("q", "a", "b") and value <= 0) or (key == "sigma" and value < 0):
            raise RecipeError(f"{at}: {key}: {_text(value)} is too small")
    try:
        found = _distribution(at, distribution, settings)
        _ = math.exp(found.mu + 10 * found.sigma) if found.log else None
    except OverflowError:
        raise RecipeError(f"{at}: {distribution} reaches numbers that are too large") from None
    return found


def _distribution(at: str, name: str, settings: dict[str, Any]) -> Distribution:
    """Where `q` is given, what is drawn is rounded to a multiple of it; inv_: 1/X is log-uniform, and so X is."""
    base, step = name.removeprefix("q_").removeprefix("inv_"), settings.get("q")
    if base == "beta":
        return Distribution("beta", step=step, a=settings["a"], b=settings["b"])
    if base in ("normal", "log_normal"):
        return Distribution("normal", log=base == "log_normal", step=step, mu=settings["mu"], sigma=settings["sigma"])
    low, high = settings["min"], settings["max"]
    if low >= high:
        raise RecipeError(f"{at}: min {_text(low)} must be below max {_text(high)}")
    if base == "int_uniform":
        if not (_is_whole(low) and _is_whole(high)):
            raise RecipeError(f"{at}: min and max of int_uniform must be whole numbers")
        return Distribution("int_uniform", low, high)
    if base == "log_uniform":
        low, high = (-high, -low) if name.startswith("inv_") else (low, high)
        return Distribution("uniform", math.exp(low), math.exp(high), log=True, step=step)
    if base == "log_uniform_values" and low <= 0:
        raise RecipeError(f"{at}: min {_text(low)} of {name} must be above 0")
    return Distribution("uniform", low, high, log=base == "log_uniform_values", step=step)


def _values(at: str, name: str, content: dict[str, Any]) -> Values:
    items = [content["value"]] if "value" in content else content["values"]
    if not isinstance(items, list) or not items:
        raise RecipeError(f"{at}: values must be a list, as in values: [0.1, 0.2]")
    texts = [str(item) if name == "recipe" else _text(item) for item in items]
    if len(set(texts)) > 1:
        refuse_without_effect(name, at)
    weights = content.get("probabilities")
    if weights is None:
        return Values(tuple(dict.fromkeys(texts)))
    right = isinstance(weights, list) and len(weights) == len(texts)
    if not right or not all(isinstance(weight, (int, float)) and weight >= 0 for weight in weights):
        raise RecipeError(f"{at}: probabilities must be a list of {len(texts)} numbers, one for each value")
    if not math.isclose(sum(weights), 1, abs_tol=1e-3):
        raise RecipeError(f"{at}: probabilities have the sum {sum(weights):.6g}, not 1")
    return Values(tuple(texts), tuple(float(weight) for weight in weights))


def _for_grid(at: str, name: str, found: Values | Distribution) -> Values:
    """W&B's grid takes int_uniform and q_uniform as lists (the latter from min up to below max)."""
    if isinstance(found, Values):
        if found.probabilities:
            raise RecipeError(f"{at}: probabilities have no meaning with method: grid")
        return found
    if name not in ("int_uniform", "q_uniform"):
        raise RecipeError(f"{at}: method: grid needs values, {name} has no end of them (method: random takes it)")
    low, high, step = (Decimal(repr(number)) for number in (found.low, found.high, found.step or 1))
    return Values(tuple(spaced(low, high + 1 if name == "int_uniform" else high, step)))


# Metric and early stopping


def _metric(file: _File) -> str | None:
    content, at = file.content.get("metric"), file.at("metric")
    if content is None:
        return None
    name = content.get("name") if isinstance(content, dict) else None
    if not isinstance(name, str):
        raise RecipeError(f"{at} must have a name, as in metric: {{name: val/top1, goal: maximize}}")
    for key in content:
        if key not in ("name", "goal", "target", "impute", "impute_while_running"):
            raise RecipeError(f"{at}: unknown key {key}{_near(str(key), ('name', 'goal', 'target'), 'it has')}")
    plain = re.sub(r"^((best|epoch)[\W_])?((val|valid|validation|eval|test)[\W_])?", "", name.lower())
    ours = METRIC_NAMES.get(re.sub(r"[\W_]", "", plain))
    if ours is None:
        raise RecipeError(f"{at}: {name} is none of val/loss, val/top1, val/top5, by which trials are compared")
    right = METRICS[ours].goal
    goal = content.get("goal")
    if goal not in (None, right):
        raise RecipeError(f"{at}: goal {_text(goal)} does not go with {name}: {right}")
    if name != f"val/{ours}":
        file.notes.append(f"metric {name} is read as val/{ours}")
    if goal is None and right == "maximize":
        file.notes.append(f"metric {name} has no goal: it is maximized (W&B would minimize it)")
    if content.get("target") is not None:
        file.notes.append("metric target is not used: all trials are run")
    return ours


def _halving(file: _File) -> HalvingRule | None:
    """min_iter: rungs min_iter * eta^k; max_iter and s: rungs max_iter / eta^k for k up to s; both cut to integers."""
    content, at = file.content.get("early_terminate"), file.at("early_terminate")
    if content is None:
        return None
    forms = "min_iter, or max_iter and s"
    if not isinstance(content, dict) or content.get("type") != "hyperband":
        raise RecipeError(f"{at} must have type: hyperband, with {forms}")
    allowed = ("type", "min_iter", "max_iter", "s", "eta", "strict")
    for key in content:
        if key not in allowed:
            raise RecipeError(f"{at}: unknown key {key}{_near(str(key), allowed, 'it has')}")
    for key in ("min_iter", "max_iter", "s"):
        if key in content and not (_is_whole(content[key]) and content[key] > 0):
            raise RecipeError(f"{at}: {key}: {_text(content[key])} must be a whole number above 0")
    eta, strict = content.get("eta", 3), content.get("strict", False)
    if isinstance(eta, bool) or not isinstance(eta, (int, float)) or eta <= 1:
        raise RecipeError(f"{at}: eta: {_text(eta)} must be a number above 1")
    if not isinstance(strict, bool):
        raise RecipeError(f"{at}: strict: {_text(strict)} must be true or false")
    if "min_iter" in content and not {"max_iter", "s"} & content.keys():
        rungs = [content["min_iter"] * eta**power for power in range(100) if power * math.log(eta) < 12]
    elif "min_iter" not in content and {"max_iter", "s"} <= content.keys():
        rungs = [content["max_iter"] / eta**power for power in range(1, min(content["s"], 100) + 1)]
    else:
        raise RecipeError(f"{at}: give {forms}")
    whole = sorted({int(rung) for rung in rungs if rung >= 1})
    if not whole:
        raise RecipeError(f"{at}: max_iter {content['max_iter']} leaves no evaluation at which to stop a trial")
    return HalvingRule(tuple(whole), float(eta), strict)


# Values and names


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: Any) -> str:
    """A value of the file as the text of an override."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return number_text(value)
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _near(name: str, names: Iterable[str], otherwise: str) -> str:
    return f": {suggestion(name, names, otherwise, count=2)}"
