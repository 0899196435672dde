"""How many bytes a training step moves through a GPU's memory, from the shapes of its tensors: what bounds a ResNet.

Counted as if every tensor came from memory and went there once a kernel, in two bytes an element. With n elements,
eager kernels move: a convolution of a to b elements 3 (a + b), of which forward, the gradient of its input and that of
its weight have a third each; BatchNorm 3 n forward (statistics, then in and out) and 5 n backward; a ReLU in place 2 n
and 3 n; the addition of a block 3 n, and 3 n where its two gradients meet. Fused, a ReLU and an addition cost nothing
but the second operand, and the gradient that is passed on: 2 n. Weights, optimizer and input count for little.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from resnet.blocks import ResidualBlock

_BYTES = 2


class Traffic(NamedTuple):
    """Bytes an image."""

    eager: float
    fused: float
    """With BatchNorm, ReLU and addition in one kernel."""


def traffic(network: nn.Module, size: int) -> Traffic:
    """Of a training step of a network on images of size x size pixels. The network is moved to the meta device."""
    sizes = dict.fromkeys(("convolutions", "norms", "relus", "sums", "pools"), 0.0)
    for module in network.to("meta").modules():
        module.register_forward_hook(lambda module, given, made: _count(sizes, module, given[0], made))
    network(torch.empty((1, 3, size, size), device="meta"))
    shared = 3 * sizes["convolutions"] + 8 * sizes["norms"] + 2 * sizes["pools"]
    eager = shared + 5 * sizes["relus"] + 6 * sizes["sums"]
    return Traffic(_BYTES * eager, _BYTES * (shared + 2 * sizes["sums"]))


def _count(sizes: dict[str, float], module: nn.Module, given: torch.Tensor, made: torch.Tensor) -> None:
    both = given.numel() + made.numel()
    match module:
        case nn.Conv2d():
            # The images themselves need no gradient.
            sizes["convolutions"] += both * (2 / 3 if given.shape[1] == 3 else 1)
        case nn.BatchNorm2d():
            sizes["norms"] += made.numel()
        case nn.ReLU():
            sizes["relus"] += made.numel()
        case ResidualBlock():
            sizes["sums"] += made.numel()
        case nn.MaxPool2d() | nn.AdaptiveAvgPool2d():
            sizes["pools"] += both
