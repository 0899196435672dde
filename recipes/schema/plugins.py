"""The keys by which a recipe names code of the user's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, field_validator

from recipes.metric import METRICS
from recipes.schema.fields import Group
from recipes.text import did_you_mean, near

PLUGINS = "plugins"
"""Folder of a run that holds its own copies of their files."""
CALLBACK_METHODS = ("on_step", "on_evaluation", "state_dict", "load_state_dict")
"""Of which a callback has any."""
_NAME = r"[A-Za-z_]\w*"
_FORM = re.compile(rf"(?:(?P<file>.+\.py)|(?P<module>{_NAME}(?:\.{_NAME})*)):(?P<name>{_NAME})")


class PluginFields(Group):
    """A function or class of the user's own, and the arguments that it is called with beside its own."""

    path: str
    """my_net.py:TinyNet (a file, from this folder, and a name in it), or package.module:NAME."""
    args: dict[str, Any] = {}
    """Arguments by name."""

    @field_validator("path")
    @classmethod
    def _names_a_place(cls, value: str) -> str:
        if not _FORM.fullmatch(value):
            raise ValueError("must be a file and a name in it, as my_net.py:TinyNet, or package.module:NAME")
        return value

    @property
    def file(self) -> Path | None:
        """The file that it names; None: it names a module."""
        found = _FORM.fullmatch(self.path)
        assert found
        return Path(found["file"]).expanduser() if found["file"] else None

    @property
    def module(self) -> str | None:
        found = _FORM.fullmatch(self.path)
        assert found
        return found["module"]

    @property
    def name(self) -> str:
        return self.path.rpartition(":")[2]

    @property
    def place(self) -> str:
        """What it is called wherever its file lies, as my_net.py:TinyNet."""
        return f"{self.file.name}:{self.name}" if self.file else self.path


def _path_alone(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


Plugin = Annotated[PluginFields, BeforeValidator(_path_alone)]


class Plugins(Group):
    """Functions and classes of your own; a model and a source are named in model.plugin and data.plugin."""

    loss: Plugin | None = None
    """Function (logits float32 (N, classes), targets float32 (N, classes), **args) -> () or (N,), in the place of
    `loss`, which then says alone how answers are read: bce, each class on its own."""
    metrics: dict[str, Plugin] = {}
    """By name, functions (logits float32 (n, classes), targets) -> float of all validation images. Higher is better,
    but where the name ends in loss or error."""
    callbacks: list[Plugin] = []
    """Classes with any of on_step, on_evaluation, state_dict and load_state_dict."""

    @field_validator("metrics")
    @classmethod
    def _names_are_free(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in (*METRICS, "samples", "step", "epoch"):
                raise ValueError(f"{name} is the name of a figure that there is already: call it otherwise")
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"{name!r} is no name for a metric: small letters, digits and _, as in map or f1")
        return value


def named_plugins(recipe: Any) -> dict[str, PluginFields]:
    """All of a recipe, by the dotted keys that name them."""
    own = recipe.plugins
    found = {
        "model.plugin": recipe.model.plugin,
        "data.plugin": getattr(recipe.data, "plugin", None),
        "plugins.loss": own.loss,
        **{f"plugins.metrics.{name}": metric for name, metric in own.metrics.items()},
        **{f"plugins.callbacks.{number}": callback for number, callback in enumerate(own.callbacks)},
    }
    return {key: plugin for key, plugin in found.items() if plugin is not None}


def check_plugins(recipe: Any) -> None:
    """Raise ValueError for keys of a recipe that do not go with its plugins."""
    own = recipe.plugins
    known = (*METRICS, *own.metrics)
    stopping = recipe.early_stopping and recipe.early_stopping.metric
    for key, metric in {"eval.metric": recipe.eval.metric, "early_stopping.metric": stopping}.items():
        if metric is not None and metric not in known:
            close = near({"accuracy": "top1", "acc": "top1"}.get(metric) or metric, known)
            hint = f": {did_you_mean(close)}" if close else " (plugins.metrics adds your own)"
            raise ValueError(f"{key}={metric} is none of {', '.join(known)}{hint}")
    idle = {
        "bce_target_threshold": recipe.bce_target_threshold is not None,
        "class_weights": recipe.class_weights is not None,
        "loss=focal": recipe.loss == "focal",
    }
    if own.loss and (given := [key for key, is_given in idle.items() if is_given]):
        raise ValueError(f"{', '.join(given)}: no effect with plugins.loss, which takes the place of loss")
    if recipe.model.plugin and (recipe.optimizer.backbone_lr_scale, recipe.optimizer.layer_decay) != (1, 1):
        raise ValueError("optimizer.backbone_lr_scale and layer_decay have no effect with model.plugin: leave them out")
    refuse_namesakes(named_plugins(recipe).values())


def refuse_namesakes(plugins: Iterable[PluginFields]) -> None:
    """Raise ValueError for two files of one name, of which a run or sweep could keep one alone."""
    files: dict[str, Path] = {}
    for plugin in plugins:
        if plugin.file and files.setdefault(plugin.file.name, plugin.file).absolute() != plugin.file.absolute():
            two = f"{files[plugin.file.name]} and {plugin.file}"
            raise ValueError(f"plugins in {two}: copies are kept by these names, so call one otherwise")


def with_paths(recipe: Any, path_of: Callable[[PluginFields], str]) -> Any:
    """A recipe whose plugins have other paths."""

    def moved(plugin: PluginFields | None) -> PluginFields | None:
        return plugin and plugin.model_copy(update={"path": path_of(plugin)})

    if not named_plugins(recipe):
        return recipe
    own = recipe.plugins
    changes = {
        "model": recipe.model.model_copy(update={"plugin": moved(recipe.model.plugin)}),
        "plugins": own.model_copy(
            update={
                "loss": moved(own.loss),
                "metrics": {name: moved(metric) for name, metric in own.metrics.items()},
                "callbacks": [moved(callback) for callback in own.callbacks],
            }
        ),
    }
    if hasattr(recipe.data, "plugin"):
        changes["data"] = recipe.data.model_copy(update={"plugin": moved(recipe.data.plugin)})
    return recipe.model_copy(update=changes)
