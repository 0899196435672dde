"""The sizes that `launch` tells without torch, against torch's own counts and the papers' tables."""

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from recipes.net_size import layers, net_size
from recipes.nets import TORCHVISIONS
from recipes.schema.model import Model
from resnet.net import build_model

PAPERS = {
    # He et al. 2015, table 6.
    "resnet20_cifar": 0.27, "resnet32_cifar": 0.46, "resnet44_cifar": 0.66, "resnet56_cifar": 0.85,
    "resnet110_cifar": 1.7, "resnet1202_cifar": 19.4,
    # Zagoruyko & Komodakis 2016, tables 4 and 5.
    "wide_resnet40_4": 8.9, "wide_resnet16_8": 11.0, "wide_resnet28_10": 36.5,
    "preactresnet110_cifar": 1.7, "preactresnet164_cifar": 1.7,
}  # fmt: skip
"""Millions of parameters of the networks for CIFAR-10."""


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_sizes_are_those_of_torchvisions_tables(name):
    told = torchvision.models.get_model_weights(name)["DEFAULT"].meta
    found = net_size(Model(name=name), 1000, 224)
    assert found.parameters == told["num_params"]
    assert round(found.multiply_adds / 1e9, 3) == told["_ops"]


@pytest.mark.parametrize("name", PAPERS)
def test_sizes_are_those_of_the_papers(name):
    digits = 2 if PAPERS[name] < 1 else 1
    assert round(net_size(Model(name=name), 10, 32).parameters / 1e6, digits) == PAPERS[name]


CIFAR = {"layers": [1, 2, 1], "stem": "cifar"}
DEEP = {"layers": [1, 2, 1, 1], "stem": "deep", "downsample": "avgpool"}
VARIED = {
    "an odd image": ({"name": "resnet26"}, 97),
    "the first paper's for CIFAR": ({"name": "resnet20_cifar"}, 32),
    "before activation": ({"block": "preact_bottleneck", **DEEP, "blurpool": True}, 65),
    "all of ResNet-RS": (
        {"block": "bottleneck", **DEEP, "maxpool": "conv", "attention": "se", "activation": "prelu"}, 65
    ),
    "groups": ({"name": "resnext50_32x4d", "groups": 4, "in_channels": 12}, 64),
    "two convolutions": ({"block": "bottleneck", **CIFAR, "kernels": [1, 3], "activation": "prelu"}, 33),
    "four convolutions": ({"block": "basic", **CIFAR, "kernels": [5, 1, 3, 7], "maxpool": True}, 33),
    "other widths": (
        {"block": "preact_basic", **CIFAR, "widths": [5, 9, 8], "stem_width": 6, "width_multiplier": 2}, 32
    ),
    "padded": ({"block": "basic", **CIFAR, "shortcut": "padded", "blurpool": True, "attention": "se"}, 31),
    "blurred, of few channels": ({"name": "resnet18", "widths": [8] * 4, "in_channels": 20, "blurpool": True}, 64),
    "pruned": (
        {"name": "resnet26", "channels": {"conv1": 40, "layer1": 100, "layer2.1.conv1": 30, "layer3": 7}}, 64
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", VARIED)
def test_sizes_are_those_of_the_network_that_is_built(case):
    model, pixels = Model(**VARIED[case][0]), VARIED[case][1]
    with torch.device("meta"):
        network, images = build_model(model, 7).eval(), torch.empty(1, model.in_channels, pixels, pixels)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert net_size(model, 7, pixels) == (parameters, counter.get_total_flops() // 2)
    weighted = {name: one for name, one in network.named_modules() if isinstance(one, (nn.Conv2d, nn.Linear))}
    assert {layer.name: layer.weights for layer in layers(model, 7)} == {
        name: one.weight.numel() for name, one in weighted.items()
    }
