"""Code of the user's own: what a model, a loss, a source, a metric and a callback have to be, and how they are loaded.

A recipe names them (`model.plugin`, `data.plugin`, `plugins`); nothing else makes their files run.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from recipes.plugin_check import sources
from recipes.schema.plugins import CALLBACK_METHODS, PluginFields
from recipes.schema.recipe import Recipe

T = TypeVar("T")
_EXTRA = "_extra_state"
"""What torch calls the state of `get_extra_state` among a module's weights."""


class PluginError(ValueError):
    """What the user's own code gave is not what it has to be; the message names it."""


class OwnModel(Protocol):
    """`model.plugin`: makes the network, whose initial weights are of torch's random numbers."""

    def __call__(self, *, num_classes: int, in_channels: int, **args: Any) -> nn.Module:
        """A network that takes float (N, in_channels, H, W) and gives logits (N, num_classes)."""
        ...


class OwnLoss(Protocol):
    """`plugins.loss`."""

    def __call__(self, logits: Tensor, targets: Tensor, **args: Any) -> Tensor:
        """() or (N,), whose mean is taken. logits: float32 (N, classes); targets: float32 (N, classes), shares of the
        classes as label smoothing and mixing leave them, or a source's own targets."""
        ...


class OwnMetric(Protocol):
    """`plugins.metrics`: a figure of all validation images at once, in their order, whatever the number of ranks."""

    def __call__(self, logits: Tensor, targets: Tensor, **args: Any) -> float:
        """logits: float32 (n, classes), on the CPU; targets: int64 (n,), or a source's float32 (n, classes)."""
        ...


class OwnSource(Protocol):
    """What `data.plugin` makes of `train: bool` and its arguments: as `source.Source`, pickled for data workers.

    Instead of `labels`, int64 (n,), it may have `targets`, float32 (n, classes), for several labels an image.
    """

    classes: list[str]

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes | Tensor:
        """The bytes of an image's file, or a uint8 tensor (channels, H, W). Raises OSError where it cannot be read."""
        ...

    def describe(self, index: int) -> str:
        """The image's file or row, for messages."""
        ...


class OwnCallback(Protocol):
    """`plugins.callbacks`: any of these. All ranks call them at the same steps, and have to do the same."""

    def on_step(self, step: int, model: nn.Module) -> None:
        """After each optimizer step; `step` are done, and `model` is the network that is trained."""

    def on_evaluation(self, step: int, result: dict[str, float]) -> None:
        """After each evaluation, with loss, top1, top5, samples and the metrics of the user's own."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, saved with each checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave, where the run goes on."""


def load_plugin(plugin: PluginFields, key: str) -> Callable[..., Any]:
    """The function or class that a plugin names; its file is run. Raises ValueError where that fails."""
    try:
        module = importlib.import_module(plugin.module) if plugin.module else _module_of(plugin)
        return getattr(module, plugin.name)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{key}={plugin.path}: {_told(error, [plugin])}") from error


def _module_of(plugin: PluginFields) -> Any:
    assert plugin.file is not None
    file = plugin.file.absolute()
    # By its content: another run of this process may have another version of the file. By its place: for messages.
    content = hashlib.sha256(str(file).encode() + b"\0" + file.read_bytes()).hexdigest()[:16]
    name = f"resnet_plugin_{file.stem}_{content}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec
        assert spec.loader
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def call(plugin: PluginFields, key: str, **given: Any) -> Any:
    """What a plugin makes of what it is given and its arguments. Raises ValueError where that fails."""
    made = load_plugin(plugin, key)
    try:
        return made(**given, **plugin.args)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{key}={plugin.path}: {_told(error, [plugin])}") from error


def own_model(plugin: PluginFields, num_classes: int, in_channels: int) -> nn.Module:
    """The network of `model.plugin`. Raises ValueError where it is none."""
    network = call(plugin, "model.plugin", num_classes=num_classes, in_channels=in_channels)
    where = f"model.plugin={plugin.path}"
    if not isinstance(network, nn.Module):
        raise ValueError(f"{where} makes a {type(network).__name__}, and no torch.nn.Module")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"{where} makes a network without parameters that are trained")
    for name, value in network.state_dict().items():
        if name.rpartition(".")[2] == _EXTRA:
            raise ValueError(f"{where}: {name}, of get_extra_state, is no weight, as a checkpoint takes: use a buffer")
        if is_lazy(value):
            raise ValueError(f"{where}: {name} has no shape before the first pass: use a layer that is not lazy")
    return network


def check_logits(plugin: PluginFields, output: Any, images: int, classes: int | None = None) -> None:
    """Raise PluginError where what a network of the user's own gives is no logits (images, classes).

    classes: None: any number. What it looks at is known without asking the device.
    """
    right = isinstance(output, Tensor) and output.is_floating_point() and output.dim() == 2
    if right and len(output) == images and classes in (None, output.shape[1]):
        return
    made = type(output).__name__
    if isinstance(output, Tensor):
        made = f"{str(output.dtype).removeprefix('torch.')} {tuple(output.shape)}"
    wanted = f"({images}, {'classes' if classes is None else classes})"
    raise PluginError(f"model.plugin={plugin.path} has to give logits in floating point {wanted}, not {made}")


def own_loss(plugin: PluginFields) -> Callable[[Tensor, Tensor], Tensor]:
    """The function of `plugins.loss` as it is called in each step: float32 ()."""
    function = load_plugin(plugin, "plugins.loss")

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        value = function(logits, targets, **plugin.args)
        if not isinstance(value, Tensor) or value.shape not in ((), (len(logits),)):
            made = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise PluginError(f"plugins.loss={plugin.path} has to give a tensor () or (N,), not {made}")
        return value.float().mean()

    return loss


def digest_of_file(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def digests(recipe: Recipe) -> dict[str, str]:
    """By dotted key, what its plugin's file holds. Raises ValueError where one is not there."""
    return {key: digest_of_file(file) for key, (_, file) in sources(recipe).items()}


def edits(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Keys whose plugin's file holds something else than it did, with both digests."""
    return {key: (before[key], now[key]) for key in now if before.get(key, now[key]) != now[key]}


def _told(error: BaseException, plugins: list[PluginFields]) -> str:
    return f"{line_in(error, plugins) or ''}{type(error).__name__}: {error}"


def line_in(error: BaseException, plugins: list[PluginFields]) -> str | None:
    """The innermost line of plugins' files that an exception came through, as "plugin my_loss.py, line 3: ".

    None where it came through none. A data worker's exception has its traceback in its text.
    """
    text = "".join(traceback.format_exception(error))
    files = {file for plugin in plugins if (file := _source_file(plugin))}
    lines = [(file, line) for file, line in re.findall(r'File "([^"\n]+)", line (\d+)', text) if file in files]
    if isinstance(error, SyntaxError) and error.filename in files:
        lines.append((str(error.filename), str(error.lineno)))
    return f"plugin {Path(str(lines[-1][0])).name}, line {lines[-1][1]}: " if lines else None


def _source_file(plugin: PluginFields) -> str | None:
    if plugin.file:
        return str(plugin.file.absolute())
    return getattr(sys.modules.get(str(plugin.module)), "__file__", None)


class Callbacks:
    """A run's own callbacks: what they are told, and what they keep."""

    def __init__(self, plugins: list[PluginFields]) -> None:
        self._plugins = plugins
        self._made: dict[str, Any] = {}
        for number, plugin in enumerate(plugins):
            made = call(plugin, f"plugins.callbacks.{number}")
            if not any(callable(getattr(made, name, None)) for name in CALLBACK_METHODS):
                raise ValueError(f"plugins.callbacks: {plugin.path} has none of {', '.join(CALLBACK_METHODS)}")
            twins = sum(name.partition("#")[0] == plugin.place for name in self._made)
            self._made[f"{plugin.place}#{twins + 1}" if twins else plugin.place] = made
        made = self._made.values()
        self._on_step = [each.on_step for each in made if hasattr(each, "on_step")]
        self._on_evaluation = [each.on_evaluation for each in made if hasattr(each, "on_evaluation")]

    @property
    def follow_steps(self) -> bool:
        return bool(self._on_step)

    def after_step(self, step: int, model: nn.Module) -> None:
        for on_step in self._on_step:
            on_step(step, model)

    def after_evaluation(self, step: int, result: dict[str, float]) -> None:
        for on_evaluation in self._on_evaluation:
            on_evaluation(step, dict(result))

    def state_dict(self) -> dict[str, Any]:
        """By name, what each keeps. Raises PluginError for what a checkpoint does not take."""
        states = {name: made.state_dict() for name, made in self._made.items() if hasattr(made, "state_dict")}
        for name, state in states.items():
            try:
                strange = _strange(state)
            except RecursionError:
                strange = "value that holds itself"
            if strange is not None:
                raise PluginError(
                    f"state_dict of {name} holds a {strange}: a checkpoint takes tensors, numbers, text, None, and "
                    "lists, tuples and dictionaries of them"
                )
        return states

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Give back what was kept; one that is new begins anew. Raises ValueError where one does not take it."""
        for name, made in self._made.items():
            if name in states and hasattr(made, "load_state_dict"):
                try:
                    made.load_state_dict(states[name])
                except (Exception, SystemExit) as error:
                    raise ValueError(f"plugins.callbacks: {name}: {_told(error, self._plugins)}") from error

    @property
    def keeping(self) -> list[str]:
        """Names of those that keep something."""
        return [name for name, made in self._made.items() if hasattr(made, "state_dict")]


def changed_states(callbacks: Callbacks | None, states: Mapping[str, Any]) -> list[str]:
    """Which callbacks get nothing of the states that a checkpoint has, and which states none gets, in lines."""
    keeping = callbacks.keeping if callbacks else []
    new = [
        f"plugins.callbacks: {name} was none before: its state begins anew" for name in keeping if name not in states
    ]
    return [*new, *(f"plugins.callbacks: the state of {name} is dropped" for name in states if name not in keeping)]


def _strange(value: Any) -> str | None:
    """The type of what is neither a tensor nor a plain value, at any depth."""
    if isinstance(value, dict):
        return next(filter(None, (_strange(inner) for pair in value.items() for inner in pair)), None)
    if type(value) in (list, tuple):
        return next(filter(None, map(_strange, value)), None)
    plain = value is None or type(value) in (bool, int, float, str, bytes, Tensor, nn.Parameter)
    return None if plain else type(value).__name__
