"""The nets of the papers: what each is built of, and the channels and strides of its blocks. Without torch."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

Block = Literal["basic", "bottleneck", "preact_basic", "preact_bottleneck"]
Stem = Literal["imagenet", "cifar", "deep"]

_18, _34, _50, _101, _152 = [2, 2, 2, 2], [3, 4, 6, 3], [3, 4, 6, 3], [3, 4, 23, 3], [3, 8, 36, 3]


def _basic(*layers: int, **others: Any) -> dict[str, Any]:
    return {"block": "basic", "layers": [*layers], **others}


def _bottleneck(*layers: int, **others: Any) -> dict[str, Any]:
    return {"block": "bottleneck", "layers": [*layers], **others}


def _preact(block: dict[str, Any]) -> dict[str, Any]:
    return {**block, "block": f"preact_{block['block']}"}


_CIFAR = {"widths": [16, 32, 64], "stem": "cifar"}
_FIRST_PAPERS = {**_CIFAR, "shortcut": "padded"}
_D = {"stem": "deep", "downsample": "avgpool"}
_RS = {**_D, "maxpool": "conv", "attention": "se", "se_ratio": 0.25}

NETS: dict[str, dict[str, Any]] = {
    "resnet18": _basic(*_18),
    "resnet34": _basic(*_34),
    "resnet26": _bottleneck(2, 2, 2, 2),
    "resnet50": _bottleneck(*_50),
    "resnet101": _bottleneck(*_101),
    "resnet152": _bottleneck(*_152),
    "resnet200": _bottleneck(3, 24, 36, 3),
    "resnext50_32x4d": _bottleneck(*_50, groups=32, width_per_group=4),
    "resnext101_32x8d": _bottleneck(*_101, groups=32, width_per_group=8),
    "resnext101_64x4d": _bottleneck(*_101, groups=64, width_per_group=4),
    "wide_resnet50_2": _bottleneck(*_50, width_per_group=128),
    "wide_resnet101_2": _bottleneck(*_101, width_per_group=128),
    "resnet18d": _basic(*_18, **_D),
    "resnet26d": _bottleneck(2, 2, 2, 2, **_D),
    "resnet34d": _basic(*_34, **_D),
    "resnet50d": _bottleneck(*_50, **_D),
    "resnet101d": _bottleneck(*_101, **_D),
    "resnet152d": _bottleneck(*_152, **_D),
    "resnet200d": _bottleneck(3, 24, 36, 3, **_D),
    "seresnet18": _basic(*_18, attention="se"),
    "seresnet34": _basic(*_34, attention="se"),
    "seresnet50": _bottleneck(*_50, attention="se"),
    "seresnet101": _bottleneck(*_101, attention="se"),
    "seresnet152": _bottleneck(*_152, attention="se"),
    "resnetrs50": _bottleneck(*_50, **_RS),
    "resnetrs101": _bottleneck(*_101, **_RS),
    "resnetrs152": _bottleneck(*_152, **_RS),
    "resnetrs200": _bottleneck(3, 24, 36, 3, **_RS),
    "resnetrs270": _bottleneck(4, 29, 53, 4, **_RS),
    "resnetrs350": _bottleneck(4, 36, 72, 4, **_RS),
    "resnetrs420": _bottleneck(4, 44, 87, 4, **_RS),
    "preactresnet18": _preact(_basic(*_18)),
    "preactresnet34": _preact(_basic(*_34)),
    "preactresnet50": _preact(_bottleneck(*_50)),
    "preactresnet101": _preact(_bottleneck(*_101)),
    "preactresnet152": _preact(_bottleneck(*_152)),
    "preactresnet200": _preact(_bottleneck(3, 24, 36, 3)),
    "resnet20_cifar": _basic(3, 3, 3, **_FIRST_PAPERS),
    "resnet32_cifar": _basic(5, 5, 5, **_FIRST_PAPERS),
    "resnet44_cifar": _basic(7, 7, 7, **_FIRST_PAPERS),
    "resnet56_cifar": _basic(9, 9, 9, **_FIRST_PAPERS),
    "resnet110_cifar": _basic(18, 18, 18, **_FIRST_PAPERS),
    "resnet1202_cifar": _basic(200, 200, 200, **_FIRST_PAPERS),
    "preactresnet110_cifar": _preact(_basic(18, 18, 18, **_CIFAR)),
    "preactresnet164_cifar": _preact(_bottleneck(18, 18, 18, **_CIFAR)),
    "preactresnet1001_cifar": _preact(_bottleneck(111, 111, 111, **_CIFAR)),
    "wide_resnet16_8": _preact(_basic(2, 2, 2, **_CIFAR, width_multiplier=8)),
    "wide_resnet28_10": _preact(_basic(4, 4, 4, **_CIFAR, width_multiplier=10)),
    "wide_resnet40_4": _preact(_basic(6, 6, 6, **_CIFAR, width_multiplier=4)),
}
"""By name, the keys of `model` that each stands for.

He et al. 2015 (arXiv:1512.03385): resnet*, and on CIFAR resnet*_cifar with shortcuts of option A; 2016 (1603.05027):
preactresnet*; Zagoruyko & Komodakis 2016 (1605.07146): wide_resnet*; Xie et al. 2016 (1611.05431): resnext*; Hu et al.
2017 (1709.01507): seresnet*; He et al. 2018 (1812.01187): resnet*d; Bello et al. 2021 (2103.07579): resnetrs*.
"""
TORCHVISIONS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)
"""Those that torchvision has too, with weights."""
NET_KEYS = (
    *("block", "layers", "widths", "width_multiplier", "kernels", "groups", "width_per_group"),
    *("stem", "stem_width", "maxpool", "downsample", "shortcut", "attention", "se_ratio"),
)
"""The keys of `model` that make a net; null: the named net's own, or what `resolve` says."""


class Net(NamedTuple):
    """What a net is built of: every key of NET_KEYS with what it comes to."""

    block: Block
    layers: tuple[int, ...]
    """Blocks in each stage."""
    widths: tuple[int, ...]
    """Planes of each stage, multiplied by `width_multiplier`: output channels of its blocks before the expansion."""
    kernels: tuple[int, ...]
    """Sizes of the convolutions of a block."""
    groups: int
    width_per_group: int
    stem: Stem
    stem_width: int
    maxpool: bool | Literal["conv"]
    downsample: Literal["conv", "avgpool"]
    shortcut: Literal["projection", "padded"]
    attention: Literal["none", "se"]
    se_ratio: float

    @property
    def preact(self) -> bool:
        return self.block.startswith("preact_")

    @property
    def expansion(self) -> int:
        """Output channels of a block over its planes."""
        return 4 if self.block.endswith("bottleneck") else 1


class BlockShape(NamedTuple):
    """One residual block."""

    place: str
    """As in layer1.0."""
    inputs: int
    widths: tuple[int, ...]
    """Output channels of each of its convolutions; the last ones are the block's."""
    stride: int
    """Of one of its convolutions, and of its shortcut."""

    @property
    def outputs(self) -> int:
        return self.widths[-1]

    @property
    def changes(self) -> bool:
        """Whether its shortcut cannot be the identity."""
        return self.stride != 1 or self.inputs != self.outputs


class Convolution(NamedTuple):
    """One of a block's."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    groups: int


def resolve(given: Mapping[str, Any]) -> Net:
    """What keys of `model` come to. given: those of NET_KEYS that are not null, with block and layers among them."""
    block, layers = given["block"], tuple(given["layers"])
    raw = given.get("widths") or [64 << stage for stage in range(len(layers))]
    stem = given.get("stem", "imagenet")
    return Net(
        block=block,
        layers=layers,
        widths=tuple(max(1, round(width * given.get("width_multiplier", 1))) for width in raw),
        kernels=tuple(given.get("kernels") or ((1, 3, 1) if block.endswith("bottleneck") else (3, 3))),
        groups=given.get("groups", 1),
        width_per_group=given.get("width_per_group", 64),
        stem=stem,
        stem_width=given.get("stem_width", raw[0]),
        maxpool=given.get("maxpool", stem != "cifar"),
        downsample=given.get("downsample", "conv"),
        shortcut=given.get("shortcut", "projection"),
        attention=given.get("attention", "none"),
        se_ratio=given.get("se_ratio", 1 / 16),
    )


def built_of(keys: Mapping[str, Any]) -> Net:
    """What `name` and NET_KEYS of `model` come to; null: not given."""
    given = {key: value for key in NET_KEYS if (value := keys.get(key)) is not None}
    return resolve({**NETS.get(keys.get("name") or "", {}), **given})


SHAPE_KEYS = ("name", "block", "layers", "widths", "width_multiplier", "kernels", "groups", "width_per_group")
"""Keys of `model` of which a name stands for all."""


def keys_of_net(net: Net) -> dict[str, Any]:
    """The fewest keys of `model` that build a net, with those of SHAPE_KEYS, null where they are not needed."""
    name = _name_of(net)
    keys = dict.fromkeys(SHAPE_KEYS) | ({"name": name} if name else {"block": net.block, "layers": [*net.layers]})
    return keys | _missing(net, keys)


def keys_to(net: Net, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `model` to set, some of them to null, so that with those given they build a net."""
    there, here = keys_of_net(net), keys_of_net(built_of(given))
    keys = {}
    if any(there[key] != here[key] for key in SHAPE_KEYS):
        keys = {key: there[key] for key in SHAPE_KEYS if there[key] != given.get(key)}
    keys |= _missing(net, {**given, **keys})
    if net.stem != built_of(given).stem:
        # Also where a name brings it: one that is the present net's own is not among the keys given, but may be set.
        keys["stem"] = net.stem
    if net.attention != "se" and given.get("se_ratio") is not None:
        keys["se_ratio"] = None
    return keys


def _missing(net: Net, given: Mapping[str, Any]) -> dict[str, Any]:
    """What others of a net's keys have to be. given: keys that build it but for these."""
    keys: dict[str, Any] = {}
    # In this order, as some come with those before them: the stem's width with widths, maxpool with the stem.
    for key in Net._fields:
        value = getattr(net, key)
        if key == "se_ratio" and net.attention != "se":
            continue
        if getattr(built_of({**given, **keys}), key) != value:
            keys[key] = [*value] if isinstance(value, tuple) else value
    return keys


def _name_of(net: Net) -> str | None:
    """The paper's net that it is; else one whose blocks have the same shape; None: there is none."""
    shape = [key for key in SHAPE_KEYS if key in Net._fields]
    known = _known()
    alike = [name for name, own in known.items() if all(getattr(own, key) == getattr(net, key) for key in shape)]
    return next((name for name in alike if known[name] == net), alike[0] if alike else None)


@functools.cache
def _known() -> dict[str, Net]:
    return {name: resolve(keys) for name, keys in NETS.items()}


def inner_width(net: Net, stage: int) -> int:
    """Output channels of all but the last convolution of a stage's blocks; stage: from 1."""
    planes = net.widths[stage - 1]
    return planes if net.expansion == 1 else planes * net.width_per_group // 64 * net.groups


def blocks(net: Net, channels: Mapping[str, int] | None = None) -> Iterator[BlockShape]:
    """The blocks in the order of the forward pass. channels: where they are not the net's own (`model.channels`)."""
    other = channels or {}
    inputs = other.get("conv1", net.stem_width)
    for stage, count in enumerate(net.layers, 1):
        outputs = other.get(
            f"layer{stage}", net.widths[stage - 1] * net.expansion if has_stream(net, stage) else inputs
        )
        for index in range(count):
            place = f"layer{stage}.{index}"
            inner = inner_width(net, stage)
            widths = [other.get(f"{place}.conv{number}", inner) for number in range(1, len(net.kernels))]
            yield BlockShape(place, inputs, (*widths, outputs), 2 if stage > 1 and index == 0 else 1)
            inputs = outputs


def convolutions(net: Net, shape: BlockShape) -> Iterator[Convolution]:
    """A block's convolutions in turn.

    The first one larger than 1x1 has its stride (the first one where none is), those larger than 1x1 between the first
    and the last its groups.
    """
    inputs, strided = shape.inputs, next((i for i, kernel in enumerate(net.kernels) if kernel > 1), 0)
    for index, (outputs, kernel) in enumerate(zip(shape.widths, net.kernels, strict=True)):
        groups = net.groups if kernel > 1 and 0 < index < len(net.kernels) - 1 else 1
        yield Convolution(inputs, outputs, kernel, shape.stride if index == strided else 1, groups)
        inputs = outputs


def se_width(net: Net, outputs: int) -> int:
    """Hidden channels of squeeze-and-excitation, rounded as timm does."""
    return max(8, int(outputs * net.se_ratio + 4) // 8 * 8)


def has_stream(net: Net, stage: int) -> bool:
    """Whether a stage has a residual stream of its own, and does not go on with the one before."""
    return stage > 1 or net.widths[0] * net.expansion != net.stem_width
