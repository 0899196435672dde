"""The keys of `model`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_validator, model_validator

from recipes.schema.fields import Count, Group
from recipes.text import cut, suggestion

ACTIVATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "celu": ((), ("alpha",)),
    "elu": ((), ("alpha",)),
    "gelu": ((), ()),
    "hardshrink": ((), ("lambd",)),
    "hardsigmoid": ((), ()),
    "hardswish": ((), ()),
    "hardtanh": ((), ("min_val", "max_val")),
    "leaky_relu": ((), ("negative_slope",)),
    "log_sigmoid": ((), ()),
    "mish": ((), ()),
    "prelu": ((), ("init",)),
    "relu": ((), ()),
    "relu6": ((), ()),
    "rrelu": ((), ("lower", "upper")),
    "selu": ((), ()),
    "sigmoid": ((), ()),
    "silu": ((), ()),
    "softplus": ((), ("beta", "threshold")),
    "softshrink": ((), ("lambd",)),
    "softsign": ((), ()),
    "tanh": ((), ()),
    "tanhshrink": ((), ()),
    "threshold": (("threshold", "value"), ()),
}
"""torch.nn's elementwise activations by their snake-case names: the arguments each needs, and those it may be given."""


_RANGES = {"hardtanh": {"min_val": -1.0, "max_val": 1.0}, "rrelu": {"lower": 1 / 8, "upper": 1 / 3}}
"""Activations with two arguments that have to ascend, and torch's defaults."""


def _unfit(name: str, arguments: dict[str, Any]) -> str:
    """What torch would say of an activation's arguments, some of it in the first step only; empty: nothing."""
    if name in _RANGES:
        (least, low), (most, high) = (_RANGES[name] | arguments).items()
        # rrelu takes the same number twice, hardtanh does not.
        wrong = low >= high if name == "hardtanh" else low > high
        return f"{least} {low:g} is not below {most} {high:g}" if wrong else ""
    if name == "softshrink" and arguments.get("lambd", 0.5) < 0:
        return "lambd must be 0 or more"
    return "alpha must not be 0" if name == "celu" and arguments.get("alpha", 1.0) == 0 else ""


class Net(NamedTuple):
    """What a net is built of."""

    block: Literal["basic", "bottleneck"]
    layers: tuple[int, ...]
    """Blocks in each stage."""
    groups: int = 1
    width_per_group: int = 64


NETS = {
    "resnet18": Net("basic", (2, 2, 2, 2)),
    "resnet34": Net("basic", (3, 4, 6, 3)),
    "resnet50": Net("bottleneck", (3, 4, 6, 3)),
    "resnet101": Net("bottleneck", (3, 4, 23, 3)),
    "resnet152": Net("bottleneck", (3, 8, 36, 3)),
    "resnext50_32x4d": Net("bottleneck", (3, 4, 6, 3), 32, 4),
    "resnext101_32x8d": Net("bottleneck", (3, 4, 23, 3), 32, 8),
    "resnext101_64x4d": Net("bottleneck", (3, 4, 23, 3), 64, 4),
    "wide_resnet50_2": Net("bottleneck", (3, 4, 6, 3), 1, 128),
    "wide_resnet101_2": Net("bottleneck", (3, 4, 23, 3), 1, 128),
}
"""torchvision's, by name."""
_PLACE = re.compile(r"layer([1-4])(?:\.(0|[1-9][0-9]{0,2})\.conv([12]))?")
_MOST_CHANNELS = 1 << 16
_LONGEST_PLACE = 24
"""Characters of what is no place, in a message."""


_ONE_SET_OF_WEIGHTS = ("resnet18", "resnet34", "resnext101_64x4d")


def is_tag(weights: str) -> bool:
    """Whether `model.pretrained` names some of torchvision's weights, and not a file or folder."""
    return re.fullmatch("[A-Z][A-Z0-9_]*", weights) is not None


def tags_of(name: str) -> tuple[str, ...]:
    """torchvision's weights for a net."""
    return (
        ("IMAGENET1K_V1", "DEFAULT") if name in _ONE_SET_OF_WEIGHTS else ("IMAGENET1K_V1", "IMAGENET1K_V2", "DEFAULT")
    )


class Model(Group):
    """The network: torchvision's ResNet with the variations below."""

    name: (
        Literal[
            "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
            "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
        ]
        | None
    ) = None  # fmt: skip
    """A torchvision ResNet; or leave it out and give `block` and `layers`."""
    block: Literal["basic", "bottleneck"] | None = None
    """Residual block of a net given by hand."""
    layers: Annotated[list[Count], Field(min_length=3, max_length=4)] | None = None
    """Blocks in each of the three or four stages (64, 128, 256, 512 planes; four times that after bottlenecks)."""
    num_classes: Count | None = None
    """Classes; taken from the data where it is not given, checked against it where it is."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """imagenet: 7x7 convolution of stride 2; cifar: 3x3 of stride 1."""
    maxpool: bool | None = None
    """3x3 max-pooling of stride 2 after the stem; null: with the imagenet stem only."""
    activation: str = "relu"
    """Any activation of torch.nn by its snake-case name: relu, silu, leaky_relu, gelu, mish, hardswish ..."""
    activation_args: dict[str, float | bool] = {}
    """Arguments of the activation, as in {negative_slope: 0.1}."""
    groups: Count | None = None
    """Groups of the bottleneck's 3x3 convolution (ResNeXt); null: the named net's own."""
    width_per_group: Count | None = None
    """Base width of a group (ResNeXt, Wide ResNet); null: the named net's own."""
    channels: dict[str, Annotated[int, Field(ge=1, le=_MOST_CHANNELS)]] = {}
    """Output channels where they are not the net's own, as in a pruned one: of the stem (conv1), of a stage's residual
    stream (layer2) or of a convolution inside a block (layer1.0.conv1, in bottlenecks conv2 too)."""
    zero_init_residual: bool = False
    """Start the last BatchNorm weight of each block at 0 (Goyal et al. 2017, arXiv:1706.02677, section 5.1)."""
    blurpool: bool = False
    """Low-pass filter before each stride-2 convolution (Zhang 2019, arXiv:1904.11486, as FFCV's recipes do)."""
    stochastic_depth: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of dropping the last block's branch; grows linearly from 0 at the first (Huang et al. 2016)."""
    sync_batchnorm: bool = False
    """Normalise over all ranks' micro-batches (GPUs only)."""
    pretrained: str | None = None
    """Weights to start from: a file of any trainer, RUN, RUN@best, RUN@step-N, or a torchvision tag (IMAGENET1K_V2)."""
    freeze_backbone: bool = False
    """Train the classifier only; the rest keeps its weights and its BatchNorm statistics."""

    @model_validator(mode="after")
    def _one_way_of_naming(self) -> Model:
        by_hand = (self.block is not None, self.layers is not None)
        if self.name is None and not all(by_hand):
            raise ValueError("needs a name (as in model.name=resnet50), or block and layers")
        if self.name is not None and any(by_hand):
            raise ValueError(f"has the name {self.name} and also block or layers: model.name=null builds by hand")
        if net_of(self).block == "basic" and (self.groups not in (None, 1) or self.width_per_group not in (None, 64)):
            raise ValueError("groups and width_per_group need bottleneck blocks (torchvision's basic block has none)")
        if self.freeze_backbone and self.pretrained is None:
            raise ValueError("freeze_backbone without pretrained weights would train a classifier on random features")
        return self

    @model_validator(mode="after")
    def _channels_fit(self) -> Model:
        net = net_of(self)
        for place, channels in self.channels.items():
            if own_channels(self, place) is None:
                named = cut(place, _LONGEST_PLACE)
                raise ValueError(f"has channels of {named}, which is no place of this net: it takes {_places(net)}")
            if "." in place and channels % net.groups:
                raise ValueError(f"has {channels} channels of {place}, which its {net.groups} groups do not divide")
        return self

    @field_validator("pretrained")
    @classmethod
    def _pretrained_can_be(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and is_tag(value) and "name" in info.data:
            name, otherwise = info.data["name"], f"give a file or folder (one of this name as ./{value})"
            if name is None:
                raise ValueError(f"torchvision has weights for named nets only: {otherwise}")
            if value not in tags_of(name):
                raise ValueError(f"torchvision's weights for {name} are {', '.join(tags_of(name))}; or {otherwise}")
        return value

    @field_validator("activation")
    @classmethod
    def _activation_is_known(cls, value: str) -> str:
        if value not in ACTIVATIONS:
            raise ValueError("torch calls it silu" if value == "swish" else suggestion(value, ACTIVATIONS))
        return value

    @field_validator("activation_args")
    @classmethod
    def _arguments_fit(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if (name := info.data.get("activation")) is None:
            return value
        required, optional = ACTIVATIONS[name]
        known = (*required, *optional)
        if unknown := [key for key in value if key not in known]:
            takes = f"it takes {', '.join(known)}" if known else "it takes no arguments"
            raise ValueError(f"{name} has no {unknown[0] or 'nameless argument'}, {takes}")
        if missing := [key for key in required if key not in value]:
            raise ValueError(f"{name} needs {', '.join(missing)}")
        if unfit := _unfit(name, value):
            raise ValueError(f"do not fit {name}: {unfit}")
        return value


def net_of(model: Model) -> Net:
    """What a network's keys come to, but for its channels."""
    if model.name is not None:
        net = NETS[model.name]
    else:
        assert model.block, "a model has a name, or block and layers"
        assert model.layers
        net = Net(model.block, tuple(model.layers))
    return net._replace(groups=model.groups or net.groups, width_per_group=model.width_per_group or net.width_per_group)


def own_channels(model: Model, place: str) -> int | None:
    """Output channels that a net has by itself at a place that `channels` may name; None: there is no such place.

    Where stage 1 has no downsample its residual stream is the stem's, and is named by it alone.
    """
    if place == "conv1":
        return 64
    net, found = net_of(model), _PLACE.fullmatch(place)
    if not found or (stage := int(found[1])) > len(net.layers):
        return None
    planes, basic = 64 << (stage - 1), net.block == "basic"
    if found[2] is None:
        return None if basic and stage == 1 else planes if basic else 4 * planes
    if int(found[2]) >= net.layers[stage - 1] or (basic and found[3] == "2"):
        return None
    return planes if basic else int(planes * net.width_per_group / 64) * net.groups


def _places(net: Net) -> str:
    last, inside = len(net.layers), "conv1" if net.block == "basic" else "conv1 and conv2"
    streams = f"layer2 to layer{last} (stages; the first is the stem's)"
    if net.block == "bottleneck":
        streams = f"layer1 to layer{last} (stages)"
    return f"conv1 (the stem), {streams}, and {inside} of a block, as in layer1.0.conv1"
