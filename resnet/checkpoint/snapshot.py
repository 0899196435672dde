"""Between the training state and the files of a checkpoint."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from resnet.batchnorm import running_statistics, scatter
from resnet.checkpoint.commit import CheckpointError
from resnet.metrics import SUMMED, WINDOW
from resnet.ranks import gather
from resnet.state import TrainState, networks
from resnet.state_dicts import mismatches
from resnet.weights_file import find_weights

MODEL, EMA, REST = "model.safetensors", "ema.safetensors", "training_state.pt"
_MOMENTS = {"momentum": "momentum_buffer", "centered": "grad_avg"}
"""By options of optimizers, which may come while a run goes on: what these need from then on, and begin at 0."""
COUNTERS = ("step", "evaluated", "best", "best_step", "stopping")
_LATER: dict[str, Any] = {"stopping": {}}
"""Those of them that older checkpoints lack, as they begin."""


class Snapshot:
    """Copies of the state on the host, in memory allocated once; with a GPU page-locked and filled without waiting."""

    def __init__(self) -> None:
        self._memory: dict[str, torch.Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def take(self, state: TrainState, facts: dict[str, Any]) -> None:
        """Copy everything; called on all ranks (each contributes its statistics), the copy is of use on rank 0."""
        statistics, windows = _per_rank(state)
        if statistics is None or windows is None:
            return
        self.rest = {
            **facts,
            "per_rank": self._copy("per_rank", statistics),
            "windows": self._copy("windows", windows),
            "window": WINDOW,
            "counters": {name: getattr(state, name) for name in COUNTERS},
            "scaler": state.scaler.state_dict(),
            "optimizer": self._copy_nested("optimizer", state.optimizer.state_dict()),
            "optimizer_name": type(state.optimizer).__name__,
            "parameters": [*_parameters(state)],
            "ema_counter": state.ema.updates if state.ema else None,
            **({"callbacks": copy.deepcopy(state.callbacks.state_dict())} if state.callbacks else {}),
        }
        self.model = self._copy_nested("model", state.model.state_dict())
        self.ema = self._copy_nested("ema", state.ema.module.state_dict()) if state.ema else None
        if state.window.device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream())

    def files(self, metadata: dict[str, str]) -> dict[str, bytes]:
        """The files' contents; waits for the copies, so best called by the writing thread.

        metadata: what the weights are to say of themselves, see `resnet.weights_file`.
        """
        if self._copied is not None:
            self._copied.synchronize()
        weights = [self.model, *([self.ema] if self.ema is not None else [])]
        statistics = [t for one in weights for name, t in one.items() if name.endswith(("running_mean", "running_var"))]
        scatter(self.rest["per_rank"].double().mean(0), statistics)
        stream = io.BytesIO()
        torch.save(self.rest, stream)
        files = {MODEL: _safetensors(self.model, metadata), REST: stream.getvalue()}
        if self.ema is not None:
            files[EMA] = _safetensors(self.ema, metadata)
        return files

    def _copy_nested(self, name: str, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._copy(name, value)
        if isinstance(value, dict):
            return {key: self._copy_nested(f"{name}/{key}", inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._copy_nested(f"{name}/{i}", inner) for i, inner in enumerate(value))
        return value

    def _copy(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        memory = self._memory.get(name)
        if memory is None or memory.shape != tensor.shape:
            pin = tensor.device.type == "cuda"
            # In the tensor's own memory format: to reorder it here would take longer than to copy it.
            memory = torch.empty_like(tensor, device="cpu", pin_memory=pin, requires_grad=False)
            self._memory[name] = memory
        return memory.copy_(tensor, non_blocking=True)


def _safetensors(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)


def _per_rank(state: TrainState) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What differs from rank to rank: running statistics (ranks, numbers) as they are, and the open logging window
    (ranks, WINDOW) float64. On rank 0."""
    parts = [buffer.flatten() for network in networks(state) for buffer in running_statistics(network)]
    sums = state.window.sums
    return gather(torch.cat([sums.new_empty(0, dtype=torch.float32), *parts])), gather(sums)


def read_rest(checkpoint: Path) -> dict[str, Any]:
    """The part of a checkpoint that is not weights. Only tensors and plain values are ever unpickled."""
    try:
        rest = torch.load(checkpoint / REST, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot read {checkpoint / REST}: {error.strerror}") from error
    except Exception as error:
        # What a stranger wrote can make the unpickler fail in any way.
        raise CheckpointError(
            f"{checkpoint / REST} holds something other than tensors and plain values and is not loaded"
        ) from error
    if not isinstance(rest, dict):
        raise CheckpointError(f"{checkpoint / REST} is not of this program")
    if "window" not in rest and isinstance(per_rank := rest.get("per_rank"), torch.Tensor) and per_rank.dim() == 2:
        # Written before there was a digest of the images: it is not known but where no image has been counted.
        samples = per_rank[:, [-4]]
        digest = torch.where(samples > 0, float("nan"), 0.0).expand(-1, 2)
        rest |= {"window": WINDOW - 2, "per_rank": torch.cat([per_rank, digest], dim=1)}
    if "windows" not in rest and isinstance(per_rank := rest.get("per_rank"), torch.Tensor) and per_rank.dim() == 2:
        # Statistics, of float32, once stood in one tensor with the windows, of float64.
        rest |= {"windows": per_rank[:, -WINDOW:], "per_rank": per_rank[:, :-WINDOW].float()}
    return rest


def restore(state: TrainState, checkpoint: Path, rest: dict[str, Any], rank: int, world_size: int) -> None:
    """Put a checkpoint into the state, in place. Raises CheckpointError where anything is missing or does not fit."""
    wanted = {"per_rank", "windows", "counters", "scaler", "optimizer", "optimizer_name", "ema_counter"}
    if missing := wanted - rest.keys():
        raise CheckpointError(f"{checkpoint / REST} lacks {', '.join(sorted(missing))}")
    try:
        _restore(state, checkpoint, rest, rank, world_size)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{checkpoint / REST} is not of this program ({problem})") from error


def _restore(state: TrainState, checkpoint: Path, rest: dict[str, Any], rank: int, world_size: int) -> None:
    load_weights(state.model, checkpoint / MODEL)
    if state.ema:
        if (rest.get("recipe") or {}).get("swa") and state.ema.decay is not None:
            raise CheckpointError(
                f"{checkpoint} has an equal average of the weights (swa), and the recipe asks for ema"
            )
        if (rest.get("recipe") or {}).get("ema") and state.ema.decay is None:
            raise CheckpointError(
                f"{checkpoint} has a moving average of the weights (ema), and the recipe asks for swa"
            )
        # One that has not begun is a copy of the weights.
        load_weights(state.ema.module, checkpoint / (MODEL if rest["ema_counter"] is None else EMA))
        state.ema.updates = rest["ema_counter"] or 0
    if rest["optimizer_name"] != (name := type(state.optimizer).__name__):
        raise CheckpointError(
            f"{checkpoint} is of {rest['optimizer_name']} and this recipe trains with {name}: to start from its "
            f"weights alone, give model.pretrained={checkpoint / MODEL}"
        )
    _restore_optimizer(state, rest, checkpoint)
    # A run that was in another precision before starts with the initial loss scale.
    if state.scaler.is_enabled() and rest.get("precision", "fp16") == "fp16":
        if not rest["scaler"]:
            raise CheckpointError(f"{checkpoint} has no loss scale, which precision=fp16 needs")
        state.scaler.load_state_dict(rest["scaler"])
    for name in COUNTERS:
        setattr(state, name, (_LATER | rest["counters"])[name])
    if state.callbacks:
        state.callbacks.load_state_dict(rest.get("callbacks", {}))
    per_rank, statistics = rest["per_rank"], sum(buffer.numel() for buffer in running_statistics(state.model))
    if rest["ema_counter"] is not None and not state.ema:
        per_rank = per_rank[:, :statistics]
    if rest["ema_counter"] is None and state.ema:
        per_rank = torch.cat([per_rank[:, :statistics], per_rank], dim=1)
    _restore_per_rank(state, per_rank, rest["windows"], rank, world_size)


@torch.no_grad()
def load_weights(network: nn.Module, file: Path) -> None:
    """Load a file of weights into a network, all of it and nothing else; what it says of itself has to fit."""
    try:
        tensors = find_weights(file, getattr(network, "config", None)).tensors
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if wrong := mismatches(tensors, network.state_dict()):
        raise CheckpointError(f"{file} does not match this network: {wrong}")
    network.load_state_dict(tensors)


def _parameters(state: TrainState) -> dict[str, nn.Parameter]:
    """What the optimizer trains, by name, in its order, which follows the scales of learning rates."""
    names = {parameter: name for name, parameter in state.model.named_parameters()}
    return {names[p]: p for group in state.optimizer.param_groups for p in group["params"]}


def _restore_optimizer(state: TrainState, rest: dict[str, Any], checkpoint: Path) -> None:
    """Load the moments, in the parameters' memory format; options (lr, weight decay ...) stay those of the recipe."""
    optimizer, saved, named = state.optimizer, rest["optimizer"], _parameters(state)
    # Earlier versions did not name them.
    names = rest.get("parameters", [*named])
    # torch's RMSprop makes them in a parameter's first step alone.
    asked = [name for option, name in _MOMENTS.items() if optimizer.defaults.get(option)]
    # Not by groups: version 0.1.0 had one more where norms or biases decay as weights do, in the same order.
    if sum(len(group["params"]) for group in saved["param_groups"]) != len(named) or {*names} != named.keys():
        raise CheckpointError(f"{checkpoint} is of an optimizer of other parameters")
    for group in optimizer.param_groups:
        if "step" in group:
            group["step"] = saved["param_groups"][0]["step"]
    on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    for index, moments in saved["state"].items():
        parameter = named[names[index]]
        for name, value in moments.items():
            wanted = torch.Size() if name in ("step", "mu_product") else parameter.shape
            if value is not None and value.shape != wanted:
                raise CheckpointError(
                    f"{checkpoint} has a {name} of shape {tuple(value.shape)} instead of {tuple(wanted)}: where "
                    "optimizer.backbone_lr_scale or layer_decay was changed, put it back"
                )
        ours = {name: _like(value, parameter, on_device) for name, value in moments.items()}
        ours |= {name: torch.zeros_like(parameter) for name in asked if name not in ours}
        optimizer.state[parameter] = ours


def _like(value: Any, parameter: torch.Tensor, counts_on_device: bool) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if value.dim():
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return value.to(parameter.device if counts_on_device else "cpu", copy=True)


@torch.no_grad()
def _restore_per_rank(
    state: TrainState, per_rank: torch.Tensor, windows: torch.Tensor, rank: int, world_size: int
) -> None:
    """With as many ranks as before each gets its own back; otherwise all get the mean, and rank 0 the sums."""
    buffers = [buffer for network in networks(state) for buffer in running_statistics(network)]
    numbers = sum(buffer.numel() for buffer in buffers)
    if per_rank.dim() != 2 or per_rank.shape[1] != numbers or windows.shape != (len(per_rank), WINDOW):
        raise CheckpointError("the checkpoint's running statistics do not match this network")
    if len(per_rank) == world_size:
        statistics, sums = per_rank[rank], windows[rank]
    else:
        statistics, sums, largest = per_rank.double().mean(0), windows.sum(0), windows.max(0).values
        sums = torch.stack([sums[i] if i in SUMMED else largest[i] for i in range(WINDOW)])
        sums = sums if rank == 0 else torch.zeros_like(sums)
    scatter(statistics, buffers)
    state.window.sums.copy_(sums)
