"""The keys of `model`."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from recipes.nets import NET_KEYS, NETS, TORCHVISIONS, Block, Net, Stem, built_of, has_stream, inner_width
from recipes.schema.fields import Count, Group, Positive
from recipes.schema.model_checks import TAG, problem_with
from recipes.schema.plugins import Plugin
from recipes.text import cut, show, suggestion

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


if TYPE_CHECKING:
    NetName = str
else:
    NetName = Literal[tuple(NETS)]

_PLACE = re.compile(r"layer([1-6])(?:\.(0|[1-9][0-9]{0,2})\.conv([1-9]))?")
_MOST_CHANNELS = 1 << 16
_LONGEST_PLACE = 24
"""Characters of what is no place, in a message."""


_ONE_SET_OF_WEIGHTS = ("resnet18", "resnet34", "resnext101_64x4d")


HUB = "hf_hub:"
"""What `model.pretrained` begins with where it names a repository of huggingface.co."""
_PART = r"\w(?:[\w.-]*\w)?"
_REPOSITORY = re.compile(rf"{HUB}{_PART}/{_PART}(@(?!.*\.\.){_PART}(?:/{_PART})*)?", re.ASCII)


def is_download(weights: str) -> bool:
    """Whether `model.pretrained` names weights that are fetched, and not a file or folder."""
    return is_tag(weights) or weights.startswith(HUB)


def is_tag(weights: str) -> bool:
    """Whether `model.pretrained` names some of torchvision's weights, and not a file or folder."""
    return re.fullmatch(TAG, weights) is not None


def tags_of(name: str) -> tuple[str, ...]:
    """torchvision's weights for a net; none where it has not got the net."""
    if name not in TORCHVISIONS:
        return ()
    return (
        ("IMAGENET1K_V1", "DEFAULT") if name in _ONE_SET_OF_WEIGHTS else ("IMAGENET1K_V1", "IMAGENET1K_V2", "DEFAULT")
    )


_WITH_PLUGIN = {"plugin", "num_classes", "in_channels", "sync_batchnorm"}
"""Keys that a network of the user's own heeds."""
_OF_WEIGHTS = {"pretrained", "freeze_backbone", "unfreeze"}


class Model(Group):
    """The network: a ResNet of the papers, by name or by hand, with the variations below."""

    name: NetName | None = None
    """A net of the papers; or leave it out and give `block` and `layers`. Other keys vary it."""
    plugin: Plugin | None = None
    """A network of your own in the place of a named one: a class or function (num_classes, in_channels, **args) ->
    nn.Module, whose output is the logits (N, num_classes). See docs/plugins.md."""
    block: Block | None = None
    """Residual block of a net given by hand: two 3x3 convolutions, or 1x1, 3x3 and 1x1; preact: normalisation and
    activation before each convolution (He et al. 2016, arXiv:1603.05027)."""
    layers: Annotated[list[Count], Field(min_length=1, max_length=6)] | None = None
    """Blocks in each of one to six stages."""
    widths: Annotated[list[Annotated[int, Field(ge=1, le=1 << 14)]], Field(min_length=1, max_length=6)] | None = None
    """Planes of each stage, of which bottlenecks put out four times as many; null: the named net's own, or 64, 128, ...
    """
    width_multiplier: Annotated[Positive | None, Field(le=64)] = None
    """Factor of all stages' planes, the stem's left as they are (as in Wide ResNets); null: the named net's own, or 1.
    """
    kernels: Annotated[list[Literal[1, 3, 5, 7]], Field(min_length=2, max_length=4)] | None = None
    """Sizes of the convolutions of a block, the last of which puts out its channels; null: the block's own."""
    num_classes: Count | None = None
    """Classes; taken from the data where it is not given, checked against it where it is."""
    in_channels: Annotated[int, Field(ge=1, le=256)] = 3
    """Channels of an image: 3 (RGB), 1 (grey), or as many bands as the images have."""
    stem: Stem | None = None
    """imagenet: 7x7 convolution of stride 2; deep: three of 3x3 (ResNet-C, He et al. 2018, arXiv:1812.01187); cifar:
    3x3 of stride 1. null: the named net's own, or imagenet."""
    stem_width: Annotated[int, Field(ge=1, le=1 << 14)] | None = None
    """Output channels of the stem; null: the first of `widths`."""
    maxpool: bool | Literal["conv"] | None = None
    """3x3 max-pooling of stride 2 after the stem; conv: a convolution in its place (ResNet-RS); null: the named net's
    own, or with every stem but cifar."""
    downsample: Literal["conv", "avgpool"] | None = None
    """Strided shortcuts: a strided 1x1 convolution, or 2x2 average pooling before one of stride 1 (ResNet-D, He et al.
    2018); null: the named net's own, or conv."""
    shortcut: Literal["projection", "padded"] | None = None
    """Shortcuts where channels change: a 1x1 convolution, or more channels of zeros (option A of He et al. 2015); null:
    the named net's own, or projection."""
    attention: Literal["none", "se"] | None = None
    """se: squeeze-and-excitation at the end of each block's branch (Hu et al. 2017, arXiv:1709.01507); null: the named
    net's own, or none."""
    se_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    """Hidden channels of squeeze-and-excitation as a share of the block's, rounded to multiples of 8; null: the named
    net's own, or 1/16."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation layers; group: over groups of channels of each image (Wu & He 2018, arXiv:1803.08494)."""
    norm_groups: Count | None = None
    """Groups of norm=group; null: 32."""
    bn_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of a batch's statistics in BatchNorm's running ones."""
    bn_eps: Positive = 1e-5
    """Added to the variance that is normalised by."""
    init: Literal["fan_out", "fan_in"] = "fan_out"
    """Convolutions begin with He's normal distribution, scaled by their outputs (as torchvision's) or their inputs."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of zeroing a feature before the classifier."""
    block_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of zeroing a value between the convolutions of a block (Wide ResNets)."""
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
    """Start the last BatchNorm weight of each block at 0 (Goyal et al. 2017, arXiv:1706.02677, section 5.1), in preact
    blocks the last convolution's. Pretrained weights take the place of it."""
    blurpool: bool = False
    """Low-pass filter before each stride-2 convolution (Zhang 2019, arXiv:1904.11486, as FFCV's recipes do)."""
    stochastic_depth: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of dropping the last block's branch; grows linearly from 0 at the first (Huang et al. 2016). A frozen
    backbone drops none."""
    sync_batchnorm: bool = False
    """Normalise over all ranks' micro-batches (GPUs only)."""
    pretrained: str | None = None
    """Weights to start from: a file of any trainer, RUN, RUN@best, RUN@step-N, a torchvision tag (IMAGENET1K_V2), or
    hf_hub:OWNER/REPO[@REVISION] of huggingface.co."""
    freeze_backbone: bool = False
    """Train the classifier only; the rest keeps its weights and its BatchNorm statistics."""
    unfreeze: dict[Annotated[int, Field(ge=0)], str] = {}
    """Begin as with freeze_backbone and let more train by and by: from an epoch on a stage and all behind it, as in
    {2: layer4, 5: layer3, 8: all}. all (or stem): the whole network."""

    @model_validator(mode="before")
    @classmethod
    def _own_stem_is_left_out(cls, values: Any) -> Any:
        # So that runs of earlier versions, which name it, have the same keys as new ones.
        if isinstance(values, dict) and values.get("stem") == _keys_of(values.get("name")).get("stem", "imagenet"):
            return {**values, "stem": None}
        return values

    @model_validator(mode="after")
    def _one_way_of_naming(self) -> Model:
        if self.plugin is not None:
            return self._with_plugin_alone()
        by_hand = (self.block is not None, self.layers is not None)
        if self.name is None and not all(by_hand):
            raise ValueError("needs a name (as in model.name=resnet50), or block and layers")
        if self.name is not None and any(by_hand):
            raise ValueError(f"has the name {self.name} and also block or layers: model.name=null builds by hand")
        if problem := problem_with(self, net_of(self)):
            raise ValueError(problem)
        return self

    def _with_plugin_alone(self) -> Model:
        given = self.model_dump(exclude_defaults=True).keys() - _WITH_PLUGIN
        if given:
            unset = ", ".join(
                f"model.{key}={show(type(self).model_fields[key].get_default())}" for key in sorted(given)
            )
            raise ValueError(f"has a plugin, which {', '.join(sorted(given))} would not reach: set {unset}")
        return self

    @model_validator(mode="after")
    def _unfreezes_more_and_more(self) -> Model:
        if not self.unfreeze:
            return self
        if self.freeze_backbone:
            raise ValueError("unfreeze begins with a frozen backbone by itself: set freeze_backbone=false")
        if self.pretrained is None:
            raise ValueError("unfreeze without pretrained weights would train a classifier on random features first")
        known = [*(f"layer{stage}" for stage in range(len(net_of(self).layers), 0, -1)), "stem", "all"]
        stages = [self.unfreeze[epoch] for epoch in sorted(self.unfreeze)]
        if unknown := [stage for stage in stages if stage not in known]:
            raise ValueError(f"unfreeze names {cut(unknown[0], _LONGEST_PLACE)}: this net has {', '.join(known)}")
        if self.unfreeze.get(0) in ("stem", "all"):
            raise ValueError("unfreeze lets all train from epoch 0 on: leave it out (unfreeze={}), or begin later")
        places = [min(known.index(stage), known.index("stem")) for stage in stages]
        if any(before >= after for before, after in itertools.pairwise(places)):
            raise ValueError(
                "unfreeze lets more train from epoch to epoch, from the last stage to the first: as in "
                "{2: layer4, 5: layer3, 8: all}"
            )
        return self

    @model_validator(mode="after")
    def _channels_fit(self) -> Model:
        if self.plugin is not None:
            return self
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
            name = info.data["name"]
            otherwise = f"give a file or folder (one of this name as ./{value}), or {HUB}OWNER/REPO"
            if name is None:
                raise ValueError(f"torchvision has weights for named nets only: {otherwise}")
            if value not in tags_of(name):
                known = f"torchvision's weights for {name} are {', '.join(tags_of(name))}; or"
                raise ValueError(f"{known if tags_of(name) else f'torchvision has no {name}:'} {otherwise}")
        if value and value.startswith((HUB, "hf-hub:")) and not _REPOSITORY.fullmatch(value):
            raise ValueError(
                f"names no repository of huggingface.co: write {HUB}OWNER/REPO or {HUB}OWNER/REPO@REVISION"
            )
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


OF_NETS = Model.model_fields.keys() - _WITH_PLUGIN - _OF_WEIGHTS
"""Keys that make and vary a named net, in whose place a plugin comes."""


def _keys_of(name: Any) -> dict[str, Any]:
    return NETS.get(name, {}) if isinstance(name, str) else {}


def name_of_model(model: Model) -> str:
    """What a network is called in a line."""
    by_hand = f"{model.block} {'-'.join(map(str, model.layers or []))}"
    return model.plugin.place if model.plugin else model.name or by_hand


def net_of(model: Model) -> Net:
    """What a network's keys come to, but for its channels. Raises ValueError for one that the user wrote."""
    if model.plugin:
        raise ValueError(f"{model.plugin.place} is no ResNet of this program, which alone can be taken here")
    return built_of(keys_given(model))


def keys_given(model: Model) -> dict[str, Any]:
    """Those that make a net, as they are given; null: not given."""
    return {key: getattr(model, key) for key in ("name", *NET_KEYS)}


def own_channels(model: Model, place: str) -> int | None:
    """Output channels that a net has by itself at a place that `channels` may name; None: there is no such place.

    Where stage 1 has no downsample its residual stream is the stem's, and is named by it alone.
    """
    net, found = net_of(model), _PLACE.fullmatch(place)
    if place == "conv1":
        return net.stem_width
    if not found or (stage := int(found[1])) > len(net.layers):
        return None
    if found[2] is None:
        return net.widths[stage - 1] * net.expansion if has_stream(net, stage) else None
    if int(found[2]) >= net.layers[stage - 1] or int(found[3]) >= len(net.kernels):
        return None
    return inner_width(net, stage)


def _places(net: Net) -> str:
    last, inside = len(net.layers), " and ".join(f"conv{number}" for number in range(1, len(net.kernels)))
    streams = f"layer1 to layer{last} (stages)"
    if not has_stream(net, 1):
        streams = f"layer2 to layer{last} (stages; the first is the stem's)"
    return f"conv1 (the stem), {streams}, and {inside} of a block, as in layer1.0.conv1"
