"""torchvision's ResNet with the variations a recipe can ask for; parameter names and shapes stay torchvision's."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet as reference
from torchvision.ops import StochasticDepth

from recipes.nets import NETS, resolve
from recipes.schema.model import ACTIVATIONS, Model, net_of, own_channels


class BasicBlock(reference.BasicBlock):
    """torchvision's, with an activation of its own for each call, as quantisation needs it, and stochastic depth."""

    relu2: nn.Module
    stochastic_depth: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.stochastic_depth(self.bn2(self.conv2(branch)))
        return self.relu2(branch + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(reference.Bottleneck):
    """As `BasicBlock`."""

    relu2: nn.Module
    relu3: nn.Module
    stochastic_depth: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.relu2(self.bn2(self.conv2(branch)))
        branch = self.stochastic_depth(self.bn3(self.conv3(branch)))
        return self.relu3(branch + (x if self.downsample is None else self.downsample(x)))


_BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(reference.ResNet):
    """torchvision's ResNet as `config` varies it. Input: float (N, 3, H, W); output: logits (N, num_classes)."""

    def __init__(self, config: Model, num_classes: int) -> None:
        net = net_of(config)
        block, layers = _BLOCKS[net.block], [*net.layers, 0][:4]
        super().__init__(block, layers, num_classes, config.zero_init_residual, net.groups, net.width_per_group)
        self.config = config
        self.backbone_frozen = False
        if isinstance(self.layer4, nn.Identity):
            self.fc = nn.Linear(self.inplanes, num_classes)
        if net.stem == "cifar":
            self.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        if not net.maxpool:
            self.maxpool = nn.Identity()
        _replace_activations(self, config)
        if config.blurpool:
            _blur_strided_convolutions(self)
        if config.channels:
            _set_channels(self, config)
        _spread_stochastic_depth(self, config.stochastic_depth)

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):  # pyright: ignore[reportIncompatibleMethodOverride]
        if blocks == 0:
            return nn.Identity()
        return super()._make_layer(block, planes, blocks, stride, dilate)

    def train(self, mode: bool = True) -> ResNet:
        """As for any module, but a frozen backbone stays in evaluation mode: its BatchNorm statistics do not move."""
        super().train(mode)
        if self.backbone_frozen:
            for name, child in self.named_children():
                child.train(mode and name == "fc")
        return self


def build_model(config: Model, num_classes: int) -> ResNet:
    """Build the network with new weights (He initialisation, as torchvision's), on the CPU.

    `config.pretrained`, `freeze_backbone` and `sync_batchnorm` are the caller's to apply, in this order.
    Raises ValueError for an unknown activation or unfit arguments of it.
    """
    return ResNet(config, num_classes)


def effective_model(config: Model) -> dict[str, Any]:
    """The keys of `model` that decide what the network computes in evaluation, each with what it comes to.

    So a named net and the same one by block and layers are equal, as are a default and the same value given.
    """
    net = net_of(config)
    name = next((name for name, known in NETS.items() if resolve(known) == net), None)
    return {
        "name": name,
        "block": None if name else net.block,
        "layers": None if name else [*net.layers],
        "groups": None if name or net.groups == 1 else net.groups,
        "width_per_group": None if name or net.width_per_group == 64 else net.width_per_group,
        "channels": {
            place: number for place, number in config.channels.items() if number != own_channels(config, place)
        },
        "stem": net.stem,
        "maxpool": net.maxpool,
        "activation": config.activation,
        "activation_args": _activation_arguments(config),
        "blurpool": config.blurpool,
    }


def _activation_arguments(config: Model) -> dict[str, Any]:
    """Those given and torch's defaults of the others; none that only begins a parameter."""
    known = inspect.signature(_CLASSES[config.activation]).parameters
    names = [name for name in itertools.chain(*ACTIVATIONS[config.activation]) if name != "init"]
    return {name: config.activation_args.get(name, known[name].default) for name in names}


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", name).lower()


_CLASSES = {_snake_case(name): getattr(nn, name) for name in nn.modules.activation.__all__}
"""torch.nn's activations by their snake-case names."""


def make_activation(name: str, arguments: Mapping[str, float | bool]) -> nn.Module:
    """An activation of torch.nn, in place where it can be. Raises ValueError for values that it does not take.

    name, arguments: of `recipes.schema.model.ACTIVATIONS`.
    """
    inplace = {"inplace": True} if "inplace" in inspect.signature(_CLASSES[name]).parameters else {}
    try:
        return _CLASSES[name](**arguments, **inplace)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"model.activation_args do not fit {name}: {error}") from error


def _replace_activations(model: ResNet, config: Model) -> None:
    for module in model.modules():
        if isinstance(module, (ResNet, BasicBlock, Bottleneck)):
            module.relu = make_activation(config.activation, config.activation_args)  # pyright: ignore[reportAttributeAccessIssue]
            for name in {BasicBlock: ("relu2",), Bottleneck: ("relu2", "relu3")}.get(type(module), ()):
                if next(module.relu.parameters(), None) is None:
                    setattr(module, name, make_activation(config.activation, config.activation_args))
                else:
                    # torchvision's block has one activation: one set of parameters, under one name.
                    object.__setattr__(module, name, module.relu)


class BlurredConv2d(nn.Conv2d):
    """A convolution behind a 3x3 binomial low-pass filter of stride 1; its weight keeps its name.

    Zhang 2019 (arXiv:1904.11486); the filter before the strided convolution is the order of FFCV's ImageNet code.
    """

    blur: Tensor

    def __init__(self, convolution: nn.Conv2d) -> None:
        channels = convolution.in_channels
        super().__init__(
            channels,
            convolution.out_channels,
            convolution.kernel_size,  # pyright: ignore[reportArgumentType]
            convolution.stride,  # pyright: ignore[reportArgumentType]
            convolution.padding,  # pyright: ignore[reportArgumentType]
            groups=convolution.groups,
            bias=False,
            device="meta",
        )
        self.weight = convolution.weight
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        blur = taps.outer(taps).repeat(channels, 1, 1, 1)
        self.register_buffer("blur", blur, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.conv2d(input, self.blur, padding=1, groups=self.in_channels))


def _blur_strided_convolutions(model: nn.Module) -> None:
    """FFCV's rule: every strided convolution of 16 input channels or more, hence not the stem."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= 16:
                setattr(parent, name, BlurredConv2d(child))


def _set_channels(model: ResNet, config: Model) -> None:
    """Build anew, with new weights, what has other channels than the net has by itself."""
    inputs = _channels(config, "conv1")
    _resize(model, "conv1", "bn1", 3, inputs)
    for stage in range(1, len(net_of(config).layers) + 1):
        outputs = _channels(config, f"layer{stage}") if _has_stream(config, stage) else inputs
        for index, block in enumerate(model.get_submodule(f"layer{stage}").children()):
            inner = ("conv1", "conv2") if isinstance(block, Bottleneck) else ("conv1",)
            widths = [inputs, *(_channels(config, f"layer{stage}.{index}.{name}") for name in inner), outputs]
            for number, (before, after) in enumerate(itertools.pairwise(widths), 1):
                _resize(block, f"conv{number}", f"bn{number}", before, after)
            if block.downsample is not None:
                _resize(block.downsample, "0", "1", inputs, outputs)  # pyright: ignore[reportArgumentType]
            if config.zero_init_residual:
                nn.init.zeros_(block.get_parameter(f"bn{len(widths) - 1}.weight"))
            inputs = outputs
    model.fc = nn.Linear(inputs, model.fc.out_features)


def _channels(config: Model, place: str) -> int:
    own = own_channels(config, place)
    assert own, place
    return config.channels.get(place, own)


def _has_stream(config: Model, stage: int) -> bool:
    """Whether a stage has a residual stream of its own, and does not go on with the one before."""
    return own_channels(config, f"layer{stage}") is not None


def _resize(parent: nn.Module, convolution: str, norm: str, inputs: int, outputs: int) -> None:
    """Give a convolution and the BatchNorm behind it so many channels, where they have others."""
    old = parent.get_submodule(convolution)
    assert isinstance(old, nn.Conv2d)
    if (old.in_channels, old.out_channels) == (inputs, outputs):
        return
    geometry: dict[str, Any] = {name: getattr(old, name) for name in ("kernel_size", "stride", "padding", "groups")}
    new = nn.Conv2d(inputs, outputs, **geometry, bias=False)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    setattr(parent, convolution, BlurredConv2d(new) if isinstance(old, BlurredConv2d) else new)
    setattr(parent, norm, nn.BatchNorm2d(outputs))


def _spread_stochastic_depth(model: nn.Module, last: float) -> None:
    blocks = [module for module in model.modules() if isinstance(module, (BasicBlock, Bottleneck))]
    for index, block in enumerate(blocks):
        block.stochastic_depth = StochasticDepth(last * index / (len(blocks) - 1), "row") if last else nn.Identity()


def has_randomness(model: nn.Module) -> bool:
    """Whether the network draws random numbers in training (stochastic depth, dropout, RReLU)."""
    return any(
        isinstance(module, nn.RReLU)
        or (isinstance(module, (StochasticDepth, nn.modules.dropout._DropoutNd)) and module.p > 0)
        for module in model.modules()
    )


def freeze_backbone(model: ResNet) -> None:
    """Leave only the classifier to be trained, also of BatchNorm's statistics: see `ResNet.train`."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("fc."))
    model.backbone_frozen = True
    model.train(model.training)
