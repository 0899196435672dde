"""All that must survive a restart, in one object. Randomness is a function of the step and needs no place here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from resnet.ema import Ema
from resnet.metrics import Window


@dataclass
class TrainState:
    model: nn.Module
    """The network itself, not what DDP or torch.compile wrapped around it."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: Ema | None
    window: Window
    step: int = 0
    """Optimizer steps attempted."""
    evaluated: int = 0
    """Step of the last evaluation."""
    best: float | None = None
    """Best value of the recipe's metric."""
    best_step: int | None = None

    @property
    def weights(self) -> nn.Module:
        """The network to evaluate and to keep: the average where there is one."""
        return self.ema.module if self.ema else self.model


def running_statistics(network: nn.Module) -> list[torch.Tensor]:
    """BatchNorm's running means and variances, which each rank has its own of."""
    return [t for name, t in network.state_dict().items() if name.endswith(("running_mean", "running_var"))]


def networks(state: TrainState) -> list[nn.Module]:
    return [state.model, *([state.ema.module] if state.ema else [])]


@torch.no_grad()
def average_running_statistics(state: TrainState) -> None:
    """Give every rank the mean of the ranks' statistics.

    They are linear in the statistics of the micro-batches, so that it does not matter when, or how often, they are
    averaged, but for rounding.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    buffers = [buffer for network in networks(state) for buffer in running_statistics(network)]
    if buffers:
        flat = torch.cat([buffer.flatten() for buffer in buffers])
        dist.all_reduce(flat)
        scatter(flat / dist.get_world_size(), buffers)


@torch.no_grad()
def scatter(flat: torch.Tensor, buffers: list[torch.Tensor]) -> None:
    """Write consecutive parts of a flat tensor into the buffers."""
    for buffer, part in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))
