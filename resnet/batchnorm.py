"""BatchNorm's running statistics: one update a step, and the same on all ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnet.state import TrainState, networks


class StatisticsOfStep:
    """Makes one update of BatchNorm's running statistics of a step's micro-batches, by the mean of theirs.

    So a step in two micro-batches on one device leaves what two devices leave that average their statistics.
    """

    def __init__(self, model: nn.Module) -> None:
        moving = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
        self.floats = [buffer for module in moving for buffer in running_statistics(module)]
        self.counts = [m.num_batches_tracked for m in moving if m.num_batches_tracked is not None]
        self.before = [buffer.clone() for buffer in self.floats]
        self.sums = [torch.zeros_like(buffer) for buffer in self.floats]
        self.micro_batches = 0

    @torch.no_grad()
    def begin(self) -> None:
        self.micro_batches = 0
        if self.floats:
            torch._foreach_copy_(self.before, self.floats)
            torch._foreach_zero_(self.sums)

    @torch.no_grad()
    def after_micro_batch(self, last: bool) -> None:
        if not self.floats:
            return
        self.micro_batches += 1
        torch._foreach_add_(self.sums, self.floats)
        if last:
            torch._foreach_div_(self.sums, self.micro_batches)
            torch._foreach_sub_(self.counts, self.micro_batches - 1)
        torch._foreach_copy_(self.floats, self.sums if last else self.before)


def running_statistics(network: nn.Module) -> list[torch.Tensor]:
    """BatchNorm's running means and variances, which each rank has its own of."""
    return [t for name, t in network.state_dict().items() if name.endswith(("running_mean", "running_var"))]


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
