"""How large a network is and what an image costs it, from its keys alone. Without torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from recipes.nets import BlockShape, Net, blocks, convolutions, se_width
from recipes.schema.model import Model, net_of


class Size(NamedTuple):
    """Of a network."""

    parameters: int
    """Without BatchNorm's statistics."""
    multiply_adds: int
    """Of convolutions and the classifier for one image: half of torch's count of FLOPs."""


class Layer(NamedTuple):
    """A square convolution, or a linear layer, whose kernel is 1."""

    name: str
    """As in the network's state dict, without .weight."""
    inputs: int
    outputs: int
    kernel: int
    pixels: int
    """Side of what it is given."""
    stride: int = 1
    groups: int = 1
    bias: bool = False

    @property
    def output_pixels(self) -> int:
        return _halved(self.pixels, self.stride)

    @property
    def weights(self) -> int:
        return self.outputs * (self.inputs // self.groups) * self.kernel**2


def _halved(pixels: int, stride: int) -> int:
    return -(-pixels // stride)


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
    """All that have weights but for normalisation and activations, in the order of the forward pass; see `net_size`."""
    net = net_of(model)
    stem = list(_stem(model, net, pixels))
    yield from stem
    pixels, outputs = stem[-1].output_pixels, stem[-1].outputs
    if net.maxpool is True:
        pixels = _halved(pixels, 2)
    for block in blocks(net, model.channels):
        yield from _block(net, block, pixels)
        pixels, outputs = _halved(pixels, block.stride), block.outputs
    if classes is not None:
        yield Layer("fc", outputs, classes, 1, 1, bias=True)


def _stem(model: Model, net: Net, pixels: int) -> Iterator[Layer]:
    outputs = model.channels.get("conv1", net.stem_width)
    if net.stem == "deep":
        inner = net.stem_width // 2
        first = Layer("conv1.0", model.in_channels, inner, 3, pixels, stride=2)
        yield first
        yield Layer("conv1.3", inner, inner, 3, first.output_pixels)
        last = Layer("conv1.6", inner, outputs, 3, first.output_pixels)
    else:
        kernel, stride = (3, 1) if net.stem == "cifar" else (7, 2)
        last = Layer("conv1", model.in_channels, outputs, kernel, pixels, stride)
    yield last
    if net.maxpool == "conv":
        yield Layer("maxpool.0", outputs, outputs, 3, last.output_pixels, stride=2)


def _block(net: Net, block: BlockShape, pixels: int) -> Iterator[Layer]:
    place, before = block.place, pixels
    for number, (inputs, outputs, kernel, stride, groups) in enumerate(convolutions(net, block), 1):
        yield Layer(f"{place}.conv{number}", inputs, outputs, kernel, pixels, stride, groups)
        pixels = _halved(pixels, stride)
    if net.attention == "se":
        hidden = se_width(net, block.outputs)
        yield Layer(f"{place}.se.fc1", block.outputs, hidden, 1, 1, bias=True)
        yield Layer(f"{place}.se.fc2", hidden, block.outputs, 1, 1, bias=True)
    if _projects(net, block) and net.downsample == "avgpool":
        yield Layer(f"{place}.downsample.1", block.inputs, block.outputs, 1, pixels)
    elif _projects(net, block):
        yield Layer(f"{place}.downsample.0", block.inputs, block.outputs, 1, before, block.stride)


def _projects(net: Net, block: BlockShape) -> bool:
    return block.changes and net.shortcut == "projection"


def _normalised(model: Model, net: Net) -> Iterator[int]:
    """Channels of each normalisation."""
    stem = [layer.outputs for layer in _stem(model, net, 1)]
    yield from stem[:-1] if net.preact else stem
    last = 0
    for block in blocks(net, model.channels):
        yield from (block.inputs, *block.widths[:-1]) if net.preact else block.widths
        if _projects(net, block) and not net.preact:
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
