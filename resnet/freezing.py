"""Gradual unfreezing: which parts of a network train in an epoch."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from resnet.net import HEAD


def frozen_parts(model: nn.Module, unfreeze: Mapping[int, str], epoch: int) -> list[nn.Module]:
    """The children of a network that do not train in an epoch; they stay in evaluation mode.

    unfreeze: of `model.unfreeze`; empty: nothing is frozen.
    """
    if not unfreeze:
        return []
    children = dict(model.named_children())
    if not (begun := [start for start in unfreeze if start <= epoch]):
        return [child for name, child in children.items() if name not in HEAD]
    stage = unfreeze[max(begun)]
    # They are in the order of the forward pass.
    return [] if stage in ("stem", "all") else list(children.values())[: list(children).index(stage)]
