"""ResNets of the papers with the variations a recipe can ask for; names and shapes are torchvision's and timm's."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from recipes.nets import SHAPE_KEYS, Net, blocks, keys_of_net
from recipes.schema.model import ACTIVATIONS, Model, net_of, own_channels
from recipes.schema.model_checks import GROUPS_OF_NORM
from resnet.blocks import (
    ACTIVATION_CLASSES,
    PreactBlock,
    ResidualBlock,
    make_activation,
    make_norm,
    make_pool,
    make_stem,
)

HEAD = ("drop", "fc")
"""Children of a network that a frozen backbone leaves in training."""


class ResNet(nn.Module):
    """A ResNet as `config` has it. Input: float (N, in_channels, H, W); output: logits (N, num_classes).

    Its children are in the order of the forward pass. Pre-activation nets have a `norm` behind the last stage in place
    of the stem's `bn1`.
    """

    def __init__(self, config: Model, num_classes: int) -> None:
        super().__init__()
        net = net_of(config)
        self.config = config
        self.backbone_frozen = False
        self.preact = net.preact
        self.stages = [f"layer{stage}" for stage in range(1, len(net.layers) + 1)]
        channels = config.channels.get("conv1", net.stem_width)
        self.conv1 = make_stem(config, net, channels)
        if not net.preact:
            self.bn1 = make_norm(config, channels)
            self.relu = make_activation(config.activation, config.activation_args)
        self.maxpool = make_pool(config, net, channels)
        for stage, built in itertools.groupby(_blocks(config, net), lambda block: block[0].partition(".")[0]):
            self.add_module(stage, nn.Sequential(*(block for _, block in built)))
        outputs = [*blocks(net, config.channels)][-1].outputs
        if net.preact:
            self.norm = make_norm(config, outputs)
            self.relu = make_activation(config.activation, config.activation_args)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.drop = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.fc = nn.Linear(outputs, num_classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images)
        if not self.preact:
            x = self.relu(self.bn1(x))
        x = self.maxpool(x)
        for stage in self.stages:
            x = getattr(self, stage)(x)
        if self.preact:
            x = self.relu(self.norm(x))
        return self.fc(self.drop(torch.flatten(self.avgpool(x), 1)))

    def train(self, mode: bool = True) -> ResNet:
        """As for any module, but a frozen backbone stays in evaluation mode: its BatchNorm statistics do not move."""
        super().train(mode)
        if self.backbone_frozen:
            for name, child in self.named_children():
                child.train(mode and name in HEAD)
        return self


def _blocks(config: Model, net: Net) -> Iterator[tuple[str, ResidualBlock]]:
    """With the place of each."""
    kind, last = PreactBlock if net.preact else ResidualBlock, sum(net.layers) - 1
    for index, shape in enumerate(blocks(net, config.channels)):
        drop_rate = config.stochastic_depth * index / last if last else config.stochastic_depth
        yield shape.place, kind(config, net, shape, drop_rate)


def _initialise(network: ResNet) -> None:
    """torchvision's way, and in its order, so that the same seed gives the same weights."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=network.config.init, nonlinearity="relu")
    if network.config.zero_init_residual:
        for module in network.modules():
            if isinstance(module, ResidualBlock):
                module.zero_last()


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
    keys = keys_of_net(net)
    return {
        **{key: keys[key] for key in SHAPE_KEYS},
        "channels": {
            place: number for place, number in config.channels.items() if number != own_channels(config, place)
        },
        "in_channels": config.in_channels,
        "stem": net.stem,
        "stem_width": keys.get("stem_width"),
        "maxpool": net.maxpool,
        "downsample": net.downsample,
        "shortcut": net.shortcut,
        "attention": net.attention,
        "se_ratio": net.se_ratio if net.attention == "se" else None,
        "norm": config.norm,
        "norm_groups": (config.norm_groups or GROUPS_OF_NORM) if config.norm == "group" else None,
        "bn_eps": config.bn_eps,
        "activation": config.activation,
        "activation_args": _activation_arguments(config),
        "blurpool": config.blurpool,
    }


def _activation_arguments(config: Model) -> dict[str, Any]:
    """Those given and torch's defaults of the others; none that only begins a parameter."""
    known = inspect.signature(ACTIVATION_CLASSES[config.activation]).parameters
    names = [name for name in itertools.chain(*ACTIVATIONS[config.activation]) if name != "init"]
    return {name: config.activation_args.get(name, known[name].default) for name in names}


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
