"""The layers of a net that have weights, from its keys alone. Without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from recipes.nets import BlockShape, Net, blocks, convolutions, se_width


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


def stem_of(net: Net, channels: Mapping[str, int], in_channels: int, pixels: int) -> Iterator[Layer]:
    """Those before the first block; see `layers_of`."""
    outputs = channels.get("conv1", net.stem_width)
    if net.stem == "deep":
        inner = net.stem_width // 2
        first = Layer("conv1.0", in_channels, inner, 3, pixels, stride=2)
        yield first
        yield Layer("conv1.3", inner, inner, 3, first.output_pixels)
        last = Layer("conv1.6", inner, outputs, 3, first.output_pixels)
    else:
        kernel, stride = (3, 1) if net.stem == "cifar" else (7, 2)
        last = Layer("conv1", in_channels, outputs, kernel, pixels, stride)
    yield last
    if net.maxpool == "conv":
        yield Layer("maxpool.0", outputs, outputs, 3, last.output_pixels, stride=2)


def layers_of(
    net: Net, channels: Mapping[str, int], in_channels: int, classes: int | None = None, pixels: int = 224
) -> Iterator[Layer]:
    """All but for normalisation and activations, in the order of the forward pass.

    channels, in_channels: of `model`. classes: outputs; None: without the classifier. pixels: height and width of an
    image.
    """
    stem = list(stem_of(net, channels, in_channels, pixels))
    yield from stem
    pixels, outputs = stem[-1].output_pixels, stem[-1].outputs
    if net.maxpool is True:
        pixels = _halved(pixels, 2)
    for block in blocks(net, channels):
        yield from _block(net, block, pixels)
        pixels, outputs = _halved(pixels, block.stride), block.outputs
    if classes is not None:
        yield Layer("fc", outputs, classes, 1, 1, bias=True)


def _block(net: Net, block: BlockShape, pixels: int) -> Iterator[Layer]:
    place, before = block.place, pixels
    for number, (inputs, outputs, kernel, stride, groups) in enumerate(convolutions(net, block), 1):
        yield Layer(f"{place}.conv{number}", inputs, outputs, kernel, pixels, stride, groups)
        pixels = _halved(pixels, stride)
    if net.attention == "se":
        hidden = se_width(net, block.outputs)
        yield Layer(f"{place}.se.fc1", block.outputs, hidden, 1, 1, bias=True)
        yield Layer(f"{place}.se.fc2", hidden, block.outputs, 1, 1, bias=True)
    if projects(net, block) and net.downsample == "avgpool":
        yield Layer(f"{place}.downsample.1", block.inputs, block.outputs, 1, pixels)
    elif projects(net, block):
        yield Layer(f"{place}.downsample.0", block.inputs, block.outputs, 1, before, block.stride)


def projects(net: Net, block: BlockShape) -> bool:
    """Whether a block's shortcut is a convolution."""
    return block.changes and net.shortcut == "projection"
