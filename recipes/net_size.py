"""How large a network is and what an image costs it, from its keys alone. Without torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from recipes.net_layers import Layer, layers_of, projects, stem_of
from recipes.nets import Net, blocks
from recipes.schema.model import Model, net_of


class Size(NamedTuple):
    """Of a network."""

    parameters: int
    """Without BatchNorm's statistics."""
    multiply_adds: int
    """Of convolutions and the classifier for one image: half of torch's count of FLOPs."""


def net_size(model: Model, classes: int | None, pixels: int) -> Size:
    """The size of the network that keys of `model` make.

    classes: outputs; None: without the classifier. pixels: height and width of an image.
    """
    net, every = net_of(model), list(layers(model, classes, pixels))
    blurs = sum(_blur(layer) for layer in every) if model.blurpool else 0
    parameters = sum(layer.weights + layer.outputs * layer.bias for layer in every)
    return Size(
        parameters + 2 * sum(_normalised(model, net)) + _activations(model, net),
        sum(layer.weights * layer.output_pixels**2 for layer in every) + blurs,
    )


def layers(model: Model, classes: int | None = None, pixels: int = 224) -> Iterator[Layer]:
    """Those of the network that keys of `model` make; see `layers_of`."""
    return layers_of(net_of(model), model.channels, model.in_channels, classes, pixels)


def _normalised(model: Model, net: Net) -> Iterator[int]:
    """Channels of each normalisation."""
    stem = [layer.outputs for layer in stem_of(net, model.channels, model.in_channels, 1)]
    yield from stem[:-1] if net.preact else stem
    last = 0
    for block in blocks(net, model.channels):
        yield from (block.inputs, *block.widths[:-1]) if net.preact else block.widths
        if projects(net, block) and not net.preact:
            yield block.outputs
        last = block.outputs
    if net.preact:
        yield last


def _activations(model: Model, net: Net) -> int:
    """Parameters of PReLU: one of each block, as in torchvision's, and of each activation before or behind them."""
    beside = 1 + 2 * (net.stem == "deep") + (net.maxpool == "conv")
    return beside + sum(net.layers) if model.activation == "prelu" else 0


def _blur(layer: Layer) -> int:
    """Multiply-adds of the filter before a strided convolution that is not the stem's."""
    return 9 * layer.inputs * layer.pixels**2 if layer.stride > 1 and not layer.name.startswith("conv1") else 0
