"""The networks of the papers: against torchvision and timm with the same random weights, and by hand."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.ops import StochasticDepth

from recipes.load import load
from recipes.nets import NETS, TORCHVISIONS
from recipes.schema.model import Model, net_of
from resnet.blocks import BlurredConv2d
from resnet.net import build_model, effective_model, freeze_backbone, has_randomness

TIMMS = {
    **{name: {"name": name} for name in ("resnet26", "resnet200")},
    **{name: {"name": name} for name in NETS if re.fullmatch(r"(resnet\d+d|seresnet\d+|resnetrs(50|101|152))", name)},
    **{f"resnet{depth}c": {"name": f"resnet{depth}", "stem": "deep"} for depth in (50, 101)},
    "resnet50_gn": {"name": "resnet50", "norm": "group"},
    "resnext50d_32x4d": {"name": "resnext50_32x4d", "stem": "deep", "downsample": "avgpool"},
    "resnext101_32x4d": {"name": "resnet101", "groups": 32, "width_per_group": 4},
    "seresnext50_32x4d": {"name": "resnext50_32x4d", "attention": "se"},
    "seresnext101_32x8d": {"name": "resnext101_32x8d", "attention": "se"},
    **{
        f"resnetv2_{depth}{kind}": {"name": f"preactresnet{depth}", **keys}
        for depth in (18, 34, 50)
        for kind, keys in {"": {}, "d": {"stem": "deep", "downsample": "avgpool"}}.items()
    },
}
"""By timm's name: our keys."""
_MOST_BLOCKS = 18
"""Of those whose outputs are compared: deeper ones are made of the same blocks."""
_PREACT_NAMES = {
    r"^stem\.conv\.": "conv1.",
    r"^stem\.conv1\.": "conv1.0.",
    r"^stem\.norm1\.": "conv1.1.",
    r"^stem\.conv2\.": "conv1.3.",
    r"^stem\.norm2\.": "conv1.4.",
    r"^stem\.conv3\.": "conv1.6.",
    r"^head\.fc\.": "fc.",
    r"\.norm(\d)\.": r".bn\1.",
}


def renamed(state, name):
    """timm's pre-activation nets call their parts otherwise."""
    if not name.startswith("resnetv2"):
        return state
    found = {}
    for key, tensor in state.items():
        for pattern, ours in _PREACT_NAMES.items():
            key = re.sub(pattern, ours, key)
        key = re.sub(r"^stages\.(\d+)\.blocks", lambda stage: f"layer{int(stage[1]) + 1}", key)
        key = key.replace("downsample.conv", f"downsample.{1 if name.endswith('d') else 0}")
        found[key] = tensor.flatten(1) if key == "fc.weight" else tensor
    return found


@pytest.fixture(scope="module")
def noise():
    return torch.randn(1 << 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def uninitialised(monkeypatch):
    """Networks on the meta device, without what takes most of their building."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "uniform_", "normal_", "trunc_normal_", "ones_", "zeros_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
    with torch.device("meta"):
        yield


def random_state(network, noise):
    """Weights that keep the size of what they are given, and norms that all count."""
    state, place = {}, 0
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            state[name] = torch.zeros_like(tensor, device="cpu")
            continue
        place = 0 if place + tensor.numel() > len(noise) else place
        drawn, place = noise[place : place + tensor.numel()].view(tensor.shape), place + tensor.numel()
        if tensor.ndim > 1:
            state[name] = drawn * math.sqrt(1 / tensor[0].numel())
        else:
            state[name] = drawn * 0.1 + (not name.endswith(("bias", "running_mean")))
    return state


@pytest.mark.parametrize("name", [*TORCHVISIONS, *TIMMS])
def test_published_weights_give_the_published_outputs(name, noise, uninitialised):
    """Of torchvision's and timm's nets: all names and shapes of tensors, and outputs with the same random weights."""
    keys = TIMMS.get(name, {"name": name})
    create = torchvision.models.get_model
    if name in TIMMS:
        create = pytest.importorskip("timm").create_model
    ours, theirs = build_model(Model(**keys), 7), create(name, num_classes=7)
    shapes = {name: tensor.shape for name, tensor in renamed(theirs.state_dict(), name).items()}
    assert shapes == {name: tensor.shape for name, tensor in ours.state_dict().items()}
    if sum(net_of(ours.config).layers) > _MOST_BLOCKS:
        return
    state = random_state(theirs, noise)
    theirs.load_state_dict(state, assign=True)
    ours.load_state_dict(renamed(state, name), assign=True)
    images = noise[: 2 * 3 * 64 * 64].view(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = theirs.eval()(images), ours.eval()(images)
    closeness = 1e-5 if name in TIMMS else 0
    torch.testing.assert_close(found, expected, rtol=closeness, atol=closeness * float(expected.std()))
    assert expected.std() > 0.01


# The papers' parameters


@pytest.mark.parametrize(
    ("keys", "millions"),
    [
        # He et al. 2016b, table 4: without the norms' own.
        ({"name": "preactresnet1001_cifar"}, 10.2),
        ({"name": "wide_resnet28_10"}, 36.5),
    ],
)
def test_parameters_of_convolutions_and_classifier_are_the_papers(keys, millions, uninitialised):
    network = build_model(Model(**keys), 10)
    weights = [
        parameter.numel()
        for module in network.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
        for parameter in module.parameters()
    ]
    assert round(sum(weights) / 1e6, 1) == millions


def test_the_net_of_1x1_and_3x3_convolutions_has_the_parameters_it_was_described_with():
    """12.43 M: of a net whose convolutions have biases, one for each channel that a norm behind them has."""
    with torch.device("meta"):
        network = build_model(load(["recipe=cifar100_onecycle_1x1_3x3"]).recipe.model, 100)
    biases = sum(module.num_features for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    own = sum(parameter.numel() for parameter in network.parameters())
    assert (own, round((own + biases) / 1e6, 2)) == (12_416_676, 12.43)
    assert [network.layer1[0].conv2.out_channels, network.layer3[2].conv1.out_channels] == [256, 256]


# Their parts, by hand


def small(num_classes=5, **keys):
    torch.manual_seed(0)
    return build_model(
        Model(**{"block": "basic", "layers": [1, 1], "widths": [8, 16], "stem": "cifar", **keys}), num_classes
    )


def test_padded_shortcuts_take_every_other_pixel_and_add_channels_of_zeros():
    block = small(shortcut="padded").layer2[0].eval()
    images = torch.rand(2, 8, 9, 9)
    nn.init.zeros_(block.bn2.weight)
    made = block(images)
    assert torch.equal(made[:, :8], images[:, :, ::2, ::2])
    assert made.shape == (2, 16, 5, 5)
    assert not made[:, 8:].any()
    assert not [name for name in block.state_dict() if "downsample" in name]


@pytest.mark.parametrize("block", ["basic", "bottleneck", "preact_basic", "preact_bottleneck"])
def test_blocks_begin_as_their_shortcuts(block):
    network = small(block=block, layers=[2, 1], zero_init_residual=True, attention="se")
    images = torch.rand(2, network.layer1[0].get_submodule("conv1").in_channels, 4, 4)
    for part, given in ((network.layer1[0], images), (network.layer1[1], network.layer1[0](images))):
        kept = given
        if part.downsample is not None:
            kept = part.downsample(part.relu(part.bn1(given)) if network.preact else given)
        assert torch.equal(part(given), kept if network.preact else kept.relu())


@pytest.mark.parametrize("block", ["basic", "preact_basic"])
def test_dropout_is_between_the_convolutions_and_before_the_classifier(block):
    network = small(block=block, block_dropout=0.4, dropout=0.2, activation="elu")
    given = {}
    for name in ("layer1.0.conv1", "layer1.0.conv2", "fc"):
        network.get_submodule(name).register_forward_pre_hook(lambda _, x, name=name: given.update({name: x[0]}))

    def zeros():
        return [float((tensor == 0).float().mean()) for tensor in given.values()]

    assert has_randomness(network)
    network.train()(torch.rand(64, 3, 8, 8))
    assert zeros() == pytest.approx([0, 0.4, 0.2], abs=0.05)
    freeze_backbone(network)
    network(torch.rand(64, 3, 8, 8))
    assert zeros() == pytest.approx([0, 0, 0.2], abs=0.05)
    network.eval()(torch.rand(64, 3, 8, 8))
    assert zeros() == [0, 0, 0]
    assert list(network.state_dict()) == list(small(block=block).state_dict())


def test_convolutions_begin_scaled_by_their_inputs_or_outputs():
    for init, fan in (("fan_in", 8 * 9), ("fan_out", 16 * 9)):
        network = small(init=init)
        assert network.layer2[0].conv1.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.1)


def test_norms_are_as_the_keys_say():
    network = small(norm="group", norm_groups=4, bn_eps=1e-3, stem="deep", downsample="avgpool", maxpool="conv")
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    assert {(norm.num_groups, norm.eps) for norm in norms} == {(4, 1e-3)}
    assert [norm.num_channels for norm in norms] == [4, 4, 8, 8, 8, 8, 16, 16, 16]
    assert not [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    network = small(bn_momentum=0.01, bn_eps=1e-3, block="preact_basic")
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.01, 1e-3)}
    assert len(norms) == 5


@pytest.mark.parametrize(
    ("keys", "blurred"),
    [
        ({"stem": "deep", "maxpool": "conv"}, {"maxpool.0", "layer2.0.conv1", "layer2.0.downsample.0"}),
        ({"downsample": "avgpool", "in_channels": 20}, {"layer2.0.conv1"}),
        ({"shortcut": "padded", "block": "preact_basic"}, {"layer2.0.conv1"}),
        ({"block": "preact_bottleneck", "stem": "imagenet"}, {"layer2.0.conv2", "layer2.0.downsample.0"}),
        ({"block": "bottleneck", "kernels": [3, 1, 3]}, {"layer2.0.conv1", "layer2.0.downsample.0"}),
    ],
)
def test_blurpool_is_before_all_that_is_strided_but_the_stem(keys, blurred):
    network = small(**keys, blurpool=True)
    assert {name for name, module in network.named_modules() if isinstance(module, BlurredConv2d)} == blurred
    network(torch.rand(2, keys.get("in_channels", 3), 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("stages", range(1, 7))
def test_nets_of_one_to_six_stages_take_images_smaller_than_their_strides(stages):
    keys = {"layers": [1] * stages, "widths": [8 * stage for stage in range(stages, 0, -1)], "stochastic_depth": 0.5}
    network = small(**keys, stem="deep", downsample="avgpool", attention="se", block="preact_bottleneck")
    images = torch.rand(4, 3, 9, 9)
    network(images).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    last = network.get_submodule(f"layer{stages}.0")
    assert (network.fc.in_features, last.stochastic_depth.p) == (32, 0.5)
    rates = [module.p for module in network.modules() if isinstance(module, StochasticDepth)]
    assert rates == pytest.approx([0.5 * i / max(1, stages - 1) for i in range(stages)] if stages > 1 else [0.5])


def test_kernels_widths_and_groups_arrive():
    network = small(
        block="bottleneck", kernels=[1, 5, 3, 1], widths=[8, 12], width_multiplier=2, groups=4, width_per_group=32
    )
    convolutions = [network.layer2[0].get_submodule(f"conv{number}") for number in range(1, 5)]
    assert [tuple(one.weight.shape) for one in convolutions] == [
        *((48, 64, 1, 1), (48, 12, 5, 5), (48, 12, 3, 3), (96, 48, 1, 1)),
    ]
    assert [one.stride[0] for one in convolutions] == [1, 2, 1, 1]
    # The stem's width is not multiplied.
    assert network.conv1.out_channels == 8
    assert network(torch.rand(2, 3, 9, 9)).shape == (2, 5)


def test_squeeze_and_excitation_by_hand():
    block = small(attention="se", se_ratio=0.5, widths=[40, 48]).layer1[0].eval()
    assert block.se.fc1.out_channels == 24  # 20, to a multiple of 8, the half rounded up
    images = torch.rand(2, 40, 4, 4)
    branch = block.bn2(block.conv2(block.bn1(block.conv1(images)).relu()))
    hidden = F.linear(branch.mean((2, 3)), block.se.fc1.weight.flatten(1), block.se.fc1.bias).relu()
    scales = F.linear(hidden, block.se.fc2.weight.flatten(1), block.se.fc2.bias).sigmoid()
    torch.testing.assert_close(block(images), (branch * scales[:, :, None, None] + images).relu())


def test_the_name_of_a_net_says_which_it_is():
    def name_of(**keys):
        return effective_model(Model(**keys))["name"]

    assert name_of(name="resnet18", stem="deep", downsample="avgpool") == "resnet18d"
    assert name_of(name="resnet18d", stem="imagenet", downsample="conv") == "resnet18"
    assert name_of(name="resnet18", attention="se", stem="cifar") == "resnet18"
    assert name_of(block="preact_basic", layers=[4, 4, 4], widths=[160, 320, 640], stem="cifar", stem_width=16) == (
        "wide_resnet28_10"
    )
    assert name_of(name="resnet18", kernels=[3, 1]) is None
