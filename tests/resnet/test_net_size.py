"""The sizes that `launch` tells without torch, against torch's own counts and the papers' tables."""

import pytest
import torchvision

from recipes.net_size import net_size
from recipes.nets import TORCHVISIONS
from recipes.schema.model import Model
from resnet.tools.export.measure import size_of

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


VARIED = {
    "an odd image": ({"name": "resnet50"}, 97),
    "the classifier of another size": ({"name": "resnet18"}, 64),
    "on a 3x3 stem": ({"block": "bottleneck", "layers": [1, 2, 1], "stem": "cifar", "maxpool": True}, 32),
    "groups": ({"name": "resnet50", "groups": 4, "width_per_group": 32}, 64),
    "blurred": ({"name": "resnet50", "blurpool": True}, 65),
    "an activation with parameters": ({"name": "resnet18", "activation": "prelu"}, 32),
    "pruned": (
        {"name": "resnet26", "channels": {"conv1": 40, "layer1": 100, "layer2.1.conv1": 30, "layer3": 7}}, 64
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", VARIED)
def test_sizes_are_those_of_the_network_that_is_built(case):
    keys, pixels = VARIED[case]
    assert tuple(net_size(Model(**keys), 7, pixels)) == size_of(Model(**keys), 7, pixels)
