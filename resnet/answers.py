"""What a network says of all validation images at once, for metrics that no sum over batches gives."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from recipes.schema.plugins import PluginFields
from resnet.plugins import PluginError, load_plugin


class Answers:
    """Logits, targets and indices of this rank's images, kept on the device until they are read."""

    def __init__(self, metrics: Mapping[str, PluginFields]) -> None:
        self._metrics = metrics
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, logits: Tensor, targets: Tensor, indices: Tensor) -> None:
        """logits: float32 (N, classes); targets: int64 (N,), or float32 (N, classes); indices: int64 (N,)."""
        self._parts.append((logits, targets, indices))

    def read(self, over_ranks: bool = True) -> dict[str, float]:
        """Each metric of all images, in their order; the same on all ranks. Raises what the metrics raise."""
        shared = over_ranks and dist.is_initialized()
        mine = [torch.cat(each).cpu() for each in zip(*self._parts, strict=True)]
        ranks = [mine]
        if shared:
            ranks = [[]] * dist.get_world_size()
            dist.all_gather_object(ranks, mine)
        logits, targets, indices = (torch.cat(each) for each in zip(*filter(None, ranks), strict=True))
        order = indices.argsort()
        found = {name: _value(name, plugin, logits[order], targets[order]) for name, plugin in self._metrics.items()}
        if shared:
            # Machines may differ in their last bits, and what is best has to be so everywhere.
            told = [found]
            dist.broadcast_object_list(told)
            found = told[0]
        return found


def _value(name: str, plugin: PluginFields, logits: Tensor, targets: Tensor) -> float:
    function = load_plugin(plugin, f"plugins.metrics.{name}")
    value = function(logits, targets, **plugin.args)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise PluginError(f"plugins.metrics.{name}={plugin.path} gives {type(value).__name__}, not a number") from error
