import inspect
import re
import urllib.error
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.ops import StochasticDepth

from recipes.nets import TORCHVISIONS
from recipes.schema.model import ACTIVATIONS, Model, tags_of
from resnet.blocks import _snake_case, make_activation
from resnet.net import build_model, freeze_backbone, has_randomness
from resnet.pretrained import load_pretrained


def tiny(num_classes=5, **keys):
    """Three stages of one block each on a 3x3 stem: quick to build and to run."""
    return build_model(Model(**{"block": "basic", "layers": [1, 1, 1], "stem": "cifar", **keys}), num_classes)


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_new_weights_are_torchvisions():
    torch.manual_seed(3)
    ours = build_model(Model(name="resnet18", zero_init_residual=True), 10).state_dict()
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18(num_classes=10, zero_init_residual=True).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert ours["layer1.0.bn2.weight"].count_nonzero() == 0


def test_three_stages_of_bottlenecks():
    model = build_model(Model(block="bottleneck", layers=[1, 2, 1], stem="cifar", maxpool=True), 100)
    assert not hasattr(model, "layer4")
    assert [stage[-1].conv3.out_channels for stage in (model.layer1, model.layer2, model.layer3)] == [256, 512, 1024]
    assert (len(model.layer2), model.fc.in_features) == (2, 1024)
    assert isinstance(model.maxpool, nn.MaxPool2d)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 100)


def test_cifar_stem_keeps_the_resolution():
    model = tiny()
    assert model.maxpool(model.conv1(torch.rand(1, 3, 32, 32))).shape == (1, 64, 32, 32)
    deviation = (2 / (64 * 9)) ** 0.5
    assert model.conv1.weight.std().item() == pytest.approx(deviation, rel=0.1)
    assert isinstance(build_model(Model(name="resnet18", maxpool=False), 10).maxpool, nn.Identity)


def test_groups_and_width_can_be_set():
    with torch.device("meta"):
        model = build_model(Model(name="resnet50", groups=4, width_per_group=32), 10)
    assert model.layer1[0].conv2.weight.shape == (128, 32, 3, 3)


THRESHOLD = {"threshold": 0.1, "value": 0.0}


def test_every_activation_replaces_every_relu_and_trains():
    assert {"relu", "silu", "leaky_relu", "gelu", "mish", "hardswish", "relu6", "log_sigmoid"} <= set(ACTIVATIONS)
    for name in ACTIVATIONS:
        kind = type(make_activation(name, THRESHOLD if name == "threshold" else {}))
        arguments = THRESHOLD if name == "threshold" else {}
        model = tiny(activation=name, activation_args=arguments)
        # One a call; one with parameters stays one, as torchvision's block has it.
        assert sum(isinstance(module, kind) for module in model.modules()) == (4 if name == "prelu" else 7), name
        assert sum(name.endswith("relu.weight") for name in model.state_dict()) == (4 if name == "prelu" else 0)
        assert name == "relu" or not any(isinstance(module, nn.ReLU) for module in model.modules())
        model(torch.rand(2, 3, 16, 16)).sum().backward()
        assert model.conv1.weight.grad.isfinite().all(), name


@pytest.mark.parametrize("name", ["silu", "mish", "leaky_relu", "elu", "hardswish"])
def test_in_place_activations_have_the_right_gradient(name):
    torch.manual_seed(0)
    model = tiny(activation=name).double()
    images = torch.rand(2, 3, 8, 8, dtype=torch.double)
    model(images).square().sum().backward()
    in_place = model.conv1.weight.grad.clone()
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    model.zero_grad()
    model(images).square().sum().backward()
    torch.testing.assert_close(in_place, model.conv1.weight.grad)


def test_activation_arguments_arrive():
    assert tiny(activation="leaky_relu", activation_args={"negative_slope": 0.1}).relu.negative_slope == 0.1
    assert tiny(activation="silu").layer1[0].relu.inplace


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("leaky_rellu", {}, "did you mean leaky_relu"),
        ("LeakyReLU", {}, "did you mean leaky_relu"),
        ("swish", {}, "torch calls it silu"),
        ("wxyz", {}, "there are: .*relu.*silu"),
        ("leaky_relu", {"slope": 0.1}, "leaky_relu has no slope, it takes negative_slope"),
        ("relu", {"inplace": True}, "relu has no inplace, it takes no arguments"),
        ("threshold", {"value": 0.1}, "threshold needs threshold"),
    ],
)
def test_activation_mistakes_are_explained_without_torch(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        Model(name="resnet18", activation=name, activation_args=arguments)


def test_arguments_that_only_torch_can_judge():
    with pytest.raises(ValueError, match="do not fit hardtanh"):
        make_activation("hardtanh", {"min_val": 2.0, "max_val": 1.0})


def test_the_recipes_weights_are_torchvisions():
    for name in TORCHVISIONS:
        assert set(tags_of(name)) == set(torchvision.models.get_model_weights(name).__members__), name


def test_the_recipes_activations_are_torchs():
    """All elementwise ones of this version of torch, with the arguments that are numbers."""
    not_elementwise = ("GLU", "MultiheadAttention", "Softmin", "Softmax", "Softmax2d", "LogSoftmax")
    found = {}
    for name in nn.modules.activation.__all__:
        if name not in not_elementwise:
            numbers = [
                p for p in inspect.signature(getattr(nn, name)).parameters.values() if p.annotation in (float, "float")
            ]
            required = tuple(p.name for p in numbers if p.default is inspect.Parameter.empty)
            found[_snake_case(name)] = required, tuple(p.name for p in numbers if p.name not in required)
    assert found == ACTIVATIONS


SHAPES = [
    ({"block": "basic", "layers": [1, 2, 1]}, {"conv1": 8, "layer2.1.conv1": 12, "layer2": 24}),
    ({"block": "basic", "layers": [1, 1, 1], "stem": "cifar", "activation": "prelu", "blurpool": True}, {"conv1": 6}),
    (
        {"block": "bottleneck", "layers": [1, 1, 1, 1], "groups": 4, "zero_init_residual": True},
        {"conv1": 10, "layer1": 20, "layer1.0.conv1": 8, "layer1.0.conv2": 12, "layer4": 40},
    ),
]


@pytest.mark.parametrize(("keys", "channels"), SHAPES)
def test_a_network_of_other_channels_differs_in_shapes_alone(keys, channels):
    plain, pruned = build_model(Model(**keys), 5), build_model(Model(**keys, channels=channels), 5)
    assert list(shapes(plain)) == list(shapes(pruned))
    modules = {name: [type(module) for module in net.modules()] for name, net in {"one": plain, "two": pruned}.items()}
    assert modules["one"] == modules["two"]
    for place, number in channels.items():
        stream = place.startswith("layer") and "." not in place
        name = f"{place}.0.downsample.0" if stream else place
        assert pruned.get_submodule(name).out_channels == number
    pruned(torch.rand(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())
    last = pruned.layer1[-1]
    zeros = (last.bn3 if hasattr(last, "bn3") else last.bn2).weight.count_nonzero() == 0
    assert zeros == keys.get("zero_init_residual", False)
    # All of its own: the network as it is without.
    torch.manual_seed(1)
    one = build_model(Model(**keys), 5).state_dict()
    torch.manual_seed(1)
    other = build_model(Model(**keys, channels={"conv1": 64, "layer2": plain.layer2[0].downsample[0].out_channels}), 5)
    assert all(torch.equal(one[name], tensor) for name, tensor in other.state_dict().items() if "fc" not in name)


@pytest.mark.parametrize(
    ("keys", "channels", "message"),
    [
        ({"name": "resnet18"}, {"layer1": 8}, "channels of layer1, .* layer2 to layer4 .*the first is the stem's"),
        ({"name": "resnet18"}, {"layer1.0.conv2": 8}, "channels of layer1.0.conv2, .* conv1 of a block"),
        ({"name": "resnet50"}, {"layer1.3.conv1": 8}, "layer1 to layer4 .*conv1 and conv2 of a block"),
        ({"block": "basic", "layers": [1, 1, 1]}, {"layer4": 8}, "layer2 to layer3"),
        ({"name": "resnext50_32x4d"}, {"layer1.0.conv2": 40}, "40 channels of layer1.0.conv2, .* 32 groups"),
        ({"name": "resnet18"}, {"conv1": 0}, "greater than or equal to 1"),
    ],
)
def test_channels_that_cannot_be_are_explained(keys, channels, message):
    with pytest.raises(ValueError, match=message):
        Model(**keys, channels=channels)


def test_blurpool_filters_before_strided_convolutions_only():
    plain, blurred = build_model(Model(name="resnet18"), 5), build_model(Model(name="resnet18", blurpool=True), 5)
    assert list(shapes(plain)) == list(shapes(blurred))
    blurred.load_state_dict(plain.state_dict())
    kinds = {name: type(module).__name__ for name, module in blurred.named_modules() if hasattr(module, "blur")}
    assert set(kinds) == {f"layer{i}.0.{name}" for i in (2, 3, 4) for name in ("conv1", "downsample.0")}

    images = torch.rand(1, 64, 9, 9)
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    smooth = torch.stack([F.conv2d(plane[None, None], kernel[None, None], padding=1)[0, 0] for plane in images[0]])
    for name in ("conv1", "downsample.0"):
        expected = plain.layer2[0].get_submodule(name)(smooth[None])
        torch.testing.assert_close(blurred.layer2[0].get_submodule(name)(images), expected)


def test_stochastic_depth_grows_linearly_and_changes_only_training():
    torch.manual_seed(0)
    plain = build_model(Model(block="bottleneck", layers=[1, 2, 1], stem="cifar"), 5)
    dropping = build_model(Model(block="bottleneck", layers=[1, 2, 1], stem="cifar", stochastic_depth=0.6), 5)
    assert list(shapes(plain)) == list(shapes(dropping))
    dropping.load_state_dict(plain.state_dict())
    rates = [module.p for module in dropping.modules() if isinstance(module, StochasticDepth)]
    assert rates == pytest.approx([0, 0.2, 0.4, 0.6])
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(dropping.eval()(images), plain.eval()(images))
    dropping.train()
    assert not torch.equal(dropping(images), dropping(images))
    assert has_randomness(dropping)
    assert not has_randomness(plain)
    assert not has_randomness(nn.Dropout(0.0))
    assert has_randomness(nn.Sequential(nn.Dropout(0.1)))


def test_stochastic_depth_drops_the_branch_of_whole_images():
    block = tiny(stochastic_depth=0.5).layer3[0]
    block.downsample = None
    block.conv1 = nn.Conv2d(256, 256, 3, padding=1, bias=False)
    images = torch.rand(64, 256, 2, 2)
    torch.manual_seed(0)
    outputs = block.train()(images)
    dropped = (outputs == images).flatten(1).all(1)
    assert 16 < dropped.sum() < 48


def test_frozen_backbone_stays_as_it_is():
    model = tiny()
    freeze_backbone(model)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(torch.rand(4, 3, 16, 16)).logsumexp(1).sum().backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"fc.weight", "fc.bias"}
    assert model.training
    assert model.fc.training
    assert not model.layer1[0].bn1.training
    assert not model.eval().fc.training


@pytest.fixture
def donor():
    torch.manual_seed(5)
    return tiny()


def assert_loaded(model, donor, but=()):
    for name, tensor in donor.state_dict().items():
        assert name in but or torch.equal(model.state_dict()[name], tensor), name


def test_pretrained_from_every_kind_of_file(donor, tmp_path):
    state = donor.state_dict()
    save_file(state, tmp_path / "final.safetensors")
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"model": state, "epoch": 3}, tmp_path / "reference.pth")
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "ddp.pth")
    for source in ("final.safetensors", "plain.pth", "reference.pth", "ddp.pth", ""):
        model = tiny()
        assert load_pretrained(model, str(tmp_path / source)).startswith(f"loaded {len(state)} tensors from ")
        assert_loaded(model, donor)


def test_pretrained_with_another_number_of_classes_keeps_the_new_head(donor, tmp_path):
    torch.save(donor.state_dict(), tmp_path / "five.pth")
    model = tiny(num_classes=3)
    head = model.fc.weight.clone()
    assert load_pretrained(model, str(tmp_path / "five.pth")).endswith("classifier is new (5 classes there, 3 here)")
    assert torch.equal(model.fc.weight, head)
    assert_loaded(model, donor, but=("fc.weight", "fc.bias"))


def test_pretrained_from_before_batches_were_counted(donor, tmp_path):
    state = {name: tensor for name, tensor in donor.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "old.pth")
    model = tiny()
    load_pretrained(model, str(tmp_path / "old.pth"))
    assert_loaded(model, donor)


def test_pretrained_that_does_not_fit_is_refused_whole(donor, tmp_path):
    state = donor.state_dict()
    del state["bn1.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["conv1.weight"] = torch.zeros(64, 3, 7, 7)
    torch.save(state, tmp_path / "other.pth")
    model = tiny()
    before = model.layer1[0].conv1.weight.clone()
    with pytest.raises(
        ValueError, match=r"without bn1.weight; with unknown extra.weight; .*conv1.weight is \[64, 3, 7"
    ):
        load_pretrained(model, str(tmp_path / "other.pth"))
    assert torch.equal(model.layer1[0].conv1.weight, before)


def test_pretrained_that_cannot_be_read_is_explained(tmp_path):
    (tmp_path / "noise.pth").write_bytes(b"not a checkpoint")
    (tmp_path / "noise.safetensors").write_bytes(b"not a checkpoint")
    (tmp_path / "run").mkdir()
    torch.save({"epoch": 3, "note": "text"}, tmp_path / "no_weights.pth")
    torch.save({"model": partial(print)}, tmp_path / "code.pth")
    for source, message in {
        "noise.pth": "cannot read the weights .*noise.pth",
        "noise.safetensors": "cannot read the weights",
        "code.pth": r"code.pth holds a whole object \(functools.partial\)",
        "no_weights.pth": "holds no state dict",
        "run": "no run directory",
        "gone.pth": "no such file",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_pretrained(tiny(), str(tmp_path / source))


def test_torchvisions_tags(monkeypatch):
    with torch.device("meta"):
        model = build_model(Model(name="resnet50"), 1000)
    with pytest.raises(ValueError, match=r"IMAGENET1K_V1, IMAGENET1K_V2"):
        load_pretrained(model, "IMAGENET1K_V7")
    with pytest.raises(ValueError, match="named nets only"):
        load_pretrained(tiny(), "DEFAULT")

    def no_network(*_, **__):
        raise urllib.error.URLError("Network is unreachable")

    weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises(ValueError, match=f"download {re.escape(weights.url)} and give"):
        load_pretrained(model, "DEFAULT")

    donor = torchvision.models.resnet18()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: donor.state_dict())
    model = build_model(Model(name="resnet18"), 1000)
    assert load_pretrained(model, "IMAGENET1K_V1").startswith("loaded 122 tensors")
    assert_loaded(model, donor)
