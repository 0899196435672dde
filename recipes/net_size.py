"""How large a network is and what an image costs it, from its keys alone. Without torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from recipes.nets import BlockShape, Net, blocks
from recipes.schema.model import Model, net_of


class Size(NamedTuple):
    """Of a network."""

    parameters: int
    """Without BatchNorm's statistics."""
    multiply_adds: int
    """Of convolutions and the classifier for one image: half of torch's count of FLOPs."""


class _Layer(NamedTuple):
    """A convolution, square, or a linear layer, whose kernel is 1."""

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

    def size(self) -> Size:
        weights = self.inputs // self.groups * self.outputs * self.kernel**2
        return Size(weights + self.outputs * self.bias, weights * self.output_pixels**2)


def _halved(pixels: int, stride: int) -> int:
    return -(-pixels // stride)


def net_size(model: Model, classes: int | None, pixels: int) -> Size:
    """The size of the network that keys of `model` make.

    classes: outputs; None: without the classifier. pixels: height and width of an image.
    """
    net = net_of(model)
    layers = list(_layers(model, net, classes, pixels))
    blurs = sum(_blur(layer) for layer in layers) if model.blurpool else 0
    sizes = [layer.size() for layer in layers]
    normalised = sum(_normalised(model, net))
    return Size(
        sum(size.parameters for size in sizes) + 2 * normalised + _activations(model, net),
        sum(size.multiply_adds for size in sizes) + blurs,
    )


def _layers(model: Model, net: Net, classes: int | None, pixels: int) -> Iterator[_Layer]:
    stem = list(_stem(model, net, pixels))
    yield from stem
    pixels, outputs = stem[-1].output_pixels, stem[-1].outputs
    if net.maxpool is True:
        pixels = _halved(pixels, 2)
    for block in blocks(net, model.channels):
        yield from _block(net, block, pixels)
        pixels, outputs = _halved(pixels, block.stride), block.outputs
    if classes is not None:
        yield _Layer(outputs, classes, 1, 1, bias=True)


def _stem(model: Model, net: Net, pixels: int) -> Iterator[_Layer]:
    outputs = model.channels.get("conv1", net.stem_width)
    if net.stem == "deep":
        inner = net.stem_width // 2
        first = _Layer(model.in_channels, inner, 3, pixels, stride=2)
        yield first
        yield _Layer(inner, inner, 3, first.output_pixels)
        last = _Layer(inner, outputs, 3, first.output_pixels)
    else:
        kernel, stride = (3, 1) if net.stem == "cifar" else (7, 2)
        last = _Layer(model.in_channels, outputs, kernel, pixels, stride)
    yield last
    if net.maxpool == "conv":
        yield _Layer(outputs, outputs, 3, last.output_pixels, stride=2)


def _block(net: Net, block: BlockShape, pixels: int) -> Iterator[_Layer]:
    inputs, before = block.inputs, pixels
    strided = _strided(net)
    for number, (outputs, kernel) in enumerate(zip(block.widths, net.kernels, strict=True)):
        groups = net.groups if kernel > 1 else 1
        layer = _Layer(inputs, outputs, kernel, pixels, block.stride if number == strided else 1, groups)
        yield layer
        inputs, pixels = outputs, layer.output_pixels
    if net.attention == "se":
        hidden = squeezed(inputs, net.se_ratio)
        yield _Layer(inputs, hidden, 1, 1, bias=True)
        yield _Layer(hidden, inputs, 1, 1, bias=True)
    if _projects(net, block):
        pooled = net.downsample == "avgpool"
        yield _Layer(
            block.inputs,
            block.outputs,
            1,
            pixels if pooled else before,
            1 if pooled else block.stride,
        )


def _strided(net: Net) -> int:
    """The convolution of a block that has its stride."""
    return next((number for number, kernel in enumerate(net.kernels) if kernel > 1), 0)


def _projects(net: Net, block: BlockShape) -> bool:
    return block.changes and net.shortcut == "projection"


def squeezed(channels: int, ratio: float) -> int:
    """Hidden channels of squeeze-and-excitation: a multiple of 8, as timm rounds it."""
    return max(8, int(channels * ratio + 4) // 8 * 8)


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
    """Parameters of PReLU: one for the stem and one for each block, as torchvision's block has one activation."""
    return (1 + sum(net.layers)) if model.activation == "prelu" else 0


def _blur(layer: _Layer) -> int:
    """Multiply-adds of the filter before a strided convolution of 16 channels or more."""
    return 9 * layer.inputs * layer.pixels**2 if layer.stride > 1 and layer.inputs >= 16 else 0
