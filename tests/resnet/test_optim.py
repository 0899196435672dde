import copy
import io
import itertools
from types import SimpleNamespace

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from recipes.load import load
from recipes.plan import make_plan
from recipes.schedules import Hyper
from recipes.schema.model import Model
from recipes.schema.optimizer import Optimizer
from resnet.adaptive_clipping import clip_adaptively
from resnet.loop import _clip
from resnet.metrics import Window
from resnet.net import build_model, freeze_backbone
from resnet.optim import build_optimizer, set_hyper
from resnet.state import TrainState
from resnet.trainer import Trainer

CONFIG = TypeAdapter(Optimizer)
ALONE = {"device": torch.device("cpu"), "process_index": 0, "mixed_precision": "no"}
"""Of an Accelerator, what a trainer asks it for."""
ALL = ["sgd", "adam", "adamw", "nadamw", "rmsprop", "rmsprop_tf", "lamb", "lars"]


def config(name, **keys):
    return CONFIG.validate_python({"name": name, **keys})


@pytest.fixture(scope="module")
def resnet():
    return build_model(Model(block="bottleneck", layers=[1, 1, 1], stem="cifar"), 5)


def small(seed=0, device="cpu"):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).to(device)


def train(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        images, targets = torch.randn(8, 4, generator=generator), torch.randn(8, 3, generator=generator)
        optimizer.zero_grad()
        (model(images) - targets).square().mean().backward()
        optimizer.step()


def names_by_group(model, optimizer):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]


def test_groups_go_by_the_type_of_the_layer(resnet):
    optimizer = build_optimizer(resnet, config("sgd", weight_decay=1e-4, weight_decay_norm=0, weight_decay_bias=2), 0.1)
    weights, norms, biases = names_by_group(resnet, optimizer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 0, 2]
    assert {"conv1.weight", "layer1.0.downsample.0.weight", "fc.weight"} <= set(weights)
    assert {"bn1.weight", "bn1.bias", "layer1.0.downsample.1.weight", "layer1.0.downsample.1.bias"} <= set(norms)
    assert biases == ["fc.bias"]
    assert sorted(weights + norms + biases) == sorted(name for name, _ in resnet.named_parameters())


def test_weight_decay_is_for_all_unless_told_otherwise(resnet):
    optimizer = build_optimizer(resnet, config("sgd", weight_decay=1e-4), 0.1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4]


@pytest.mark.parametrize("decays", [{"weight_decay_norm": 0}, {"weight_decay_bias": 0}, {"weight_decay_norm": 1e-4}])
def test_parameters_keep_their_order_however_they_are_grouped(resnet, decays):
    # It is by their place in it that a checkpoint knows them.
    apart = build_optimizer(resnet, config("sgd", weight_decay=1e-4, weight_decay_norm=0, weight_decay_bias=2), 0.1)
    grouped = build_optimizer(resnet, config("sgd", weight_decay=1e-4, **decays), 0.1)
    in_order = [itertools.chain.from_iterable(names_by_group(resnet, one)) for one in (grouped, apart)]
    assert list(in_order[0]) == list(in_order[1])


def test_fine_tuning_scales_the_backbone(resnet):
    optimizer = build_optimizer(resnet, config("adam", backbone_lr_scale=0.1), 1e-3)
    classifier = [names for names in names_by_group(resnet, optimizer) if any(name.startswith("fc.") for name in names)]
    assert classifier == [["fc.weight", "fc.bias"]]
    assert [group["lr_scale"] for group in optimizer.param_groups] == [0.1, 1.0]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-4, 1e-3])
    set_hyper(optimizer, Hyper(0.5, None))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.5])


def test_frozen_parameters_are_left_out(resnet):
    model = copy.deepcopy(resnet)
    freeze_backbone(model)
    assert names_by_group(model, build_optimizer(model, config("sgd"), 0.1)) == [["fc.weight", "fc.bias"]]


@pytest.mark.parametrize("name", ALL)
def test_momentum_is_set_only_where_the_schedule_cycles_it(name):
    optimizer = build_optimizer(small(), config(name), 0.1)

    def momenta():
        return {group["betas"] if "betas" in group else group["momentum"] for group in optimizer.param_groups}

    before = momenta()
    set_hyper(optimizer, Hyper(0.2, None))
    assert momenta() == before
    set_hyper(optimizer, Hyper(0.2, 0.87))
    assert momenta() == ({(0.87, 0.999)} if "adam" in name or name == "lamb" else {0.87})
    assert {group["lr"] for group in optimizer.param_groups} == {0.2}


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_equals_torchs(nesterov):
    ours, theirs = small(), small()
    train(ours, build_optimizer(ours, config("sgd", nesterov=nesterov, weight_decay=1e-2), 0.1), 20)
    train(theirs, torch.optim.SGD(theirs.parameters(), 0.1, 0.9, weight_decay=1e-2, nesterov=nesterov), 20)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize(("name", "theirs"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_adam_equals_torchs(name, theirs):
    mine, other = small(), small()
    train(mine, build_optimizer(mine, config(name, weight_decay=0.1, betas=(0.8, 0.99), eps=1e-6), 0.01), 20)
    train(other, theirs(other.parameters(), 0.01, (0.8, 0.99), 1e-6, weight_decay=0.1), 20)
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), other.parameters(), strict=True))


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_nadamw_equals_torchs():
    ours, theirs = small(), small()
    keys = {"weight_decay": 0.1, "betas": (0.8, 0.99), "eps": 1e-6, "momentum_decay": 0.01}
    train(ours, build_optimizer(ours, config("nadamw", **keys), 0.01), 20)
    train(theirs, torch.optim.NAdam(theirs.parameters(), 0.01, decoupled_weight_decay=True, **keys), 20)
    assert same(ours, theirs)


@pytest.mark.parametrize("centered", [False, True])
def test_rmsprop_equals_torchs(centered):
    ours, theirs = small(), small()
    keys = {"weight_decay": 0.01, "alpha": 0.9, "eps": 1e-4, "momentum": 0.8, "centered": centered}
    train(ours, build_optimizer(ours, config("rmsprop", **keys), 0.01), 20)
    train(theirs, torch.optim.RMSprop(theirs.parameters(), 0.01, **keys), 20)
    assert same(ours, theirs)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_tensorflows_rmsprop_equals_timms(momentum):
    timm = pytest.importorskip("timm.optim")
    ours, theirs = small(), small()
    keys = {"weight_decay": 0.01, "alpha": 0.9, "eps": 1e-3, "momentum": momentum}
    train(ours, build_optimizer(ours, config("rmsprop_tf", **keys), 0.01), 20)
    train(theirs, timm.RMSpropTF(theirs.parameters(), 0.01, **keys), 20)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


def test_tensorflows_rmsprop_by_hand():
    layer = nn.Linear(1, 1, bias=False)
    optimizer = build_optimizer(layer, config("rmsprop_tf", alpha=0.5, eps=0.25, momentum=0.5), 0.1)
    weight, square, momentum = layer.weight.item(), 1.0, 0.0
    for step, gradient in enumerate([1.0, -2.0, 0.5]):
        set_hyper(optimizer, Hyper(lr := 0.1 / (step + 1), None))
        layer.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        square = 0.5 * square + 0.5 * gradient**2
        momentum = 0.5 * momentum + lr * gradient / (square + 0.25) ** 0.5
        weight -= momentum
        assert layer.weight.item() == pytest.approx(weight, rel=1e-5)


def layers_of(model, optimizer):
    """By module: its multiple of the learning rate."""
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    return {name: scales[id(parameter)] for name, parameter in model.named_parameters()}


def test_layer_decay_equals_timms():
    timm, theirs_of = pytest.importorskip("timm"), pytest.importorskip("timm.optim")
    model, theirs = build_model(Model(name="resnet18"), 5), timm.create_model("resnet18", num_classes=5)
    keys = config("sgd", layer_decay=0.7, weight_decay=0.1, weight_decay_norm=0)
    groups = theirs_of.param_groups_layer_decay(theirs, layer_decay=0.7)
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    expected = {name: scales[id(parameter)] for name, parameter in theirs.named_parameters()}
    found = layers_of(model, build_optimizer(model, keys, 0.1))
    assert found == pytest.approx(expected)
    assert (found["fc.bias"], found["layer4.1.conv2.weight"], found["bn1.weight"]) == pytest.approx((1, 0.7, 0.7**9))


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({"block": "basic", "maxpool": "conv"}, {"bn1": {0.5**4}, "maxpool": {0.5**4}}),
        ({"block": "preact_basic"}, {"norm": {1.0}}),
    ],
)
def test_layer_decay_knows_what_else_a_net_has(keys, parts):
    model = build_model(Model(**keys, layers=[1, 2], stem="deep"), 5)
    found = layers_of(model, build_optimizer(model, config("sgd", layer_decay=0.5), 0.1))
    by_part = {}
    for name, scale in found.items():
        by_part.setdefault(".".join(name.split(".")[: 2 if name.startswith("layer") else 1]), set()).add(scale)
    assert by_part == {
        "conv1": {0.5**4},
        "layer1.0": {0.5**3},
        "layer2.0": {0.5**2},
        "layer2.1": {0.5},
        "fc": {1.0},
        **parts,
    }


def test_layer_decay_leaves_the_order_of_parameters(resnet):
    # So that it may change while a run goes on.
    keys = {"weight_decay": 1e-4, "weight_decay_norm": 0}
    plain, decayed = (build_optimizer(resnet, config("sgd", layer_decay=by, **keys), 0.1) for by in (1, 0.5))
    in_order = [itertools.chain.from_iterable(names_by_group(resnet, one)) for one in (plain, decayed)]
    assert list(in_order[0]) == list(in_order[1])


def test_adaptive_clipping_equals_timms(resnet):
    timm = pytest.importorskip("timm.utils.agc")
    model = copy.deepcopy(resnet).to(memory_format=torch.channels_last)
    with torch.no_grad():
        model.layer1[0].bn1.weight.zero_()
    theirs, before = copy.deepcopy(model), []
    for number, (mine, other) in enumerate(zip(model.parameters(), theirs.parameters(), strict=True)):
        gradient = torch.randn(mine.shape, generator=torch.Generator().manual_seed(number)) * 10 ** (number % 5 - 4)
        mine.grad, other.grad = gradient.clone(), gradient.clone()
        before.append(gradient)
    # As timm's training script gives it: all but the classifier's weight and bias.
    timm.adaptive_clip_grad([*theirs.parameters()][:-2], clip_factor=0.01)
    clip_adaptively([*model.parameters()][:-2], 0.01)
    changed = 0
    for mine, other, old in zip(model.parameters(), theirs.parameters(), before, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-6, atol=0)
        changed += not torch.equal(mine.grad, old)
    assert 0 < changed < len(before)


def test_training_clips_all_layers_but_the_classifier(resnet):
    model = copy.deepcopy(resnet)
    recipe = load(["recipe=quickstart", "grad_clip_adaptive=0.01", "log_every=1"]).recipe
    optimizer = build_optimizer(model, recipe.optimizer, 0.1)
    state = TrainState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), None, Window(torch.device("cpu")))
    trainer = Trainer(make_plan(recipe, 96, 1), SimpleNamespace(**ALONE), model, state, 5, 0, hooks=None)  # pyright: ignore
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    norm = _clip(trainer, 0)
    assert norm is not None
    assert norm.item() == pytest.approx(sum(parameter.numel() for parameter in model.parameters()) ** 0.5, rel=1e-4)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        clipped = parameter.grad.norm() <= 0.0101 * parameter.norm().clamp(min=1e-3)
        assert clipped == (not name.startswith("fc.")), name


def test_adaptive_clipping_never_waits_for_the_device():
    model = small(device="meta")
    for parameter in [*model.parameters()][1:]:
        parameter.grad = torch.ones_like(parameter)
    clip_adaptively([*model.parameters()], 0.01)


def lamb_reference(weights, grads, lr, decay, betas=(0.9, 0.999), eps=1e-6):
    """You et al. 2019, algorithm 2, an element at a time."""
    first, second = [0.0] * len(weights), [0.0] * len(weights)
    for t, grad in enumerate(grads, 1):
        first = [betas[0] * m + (1 - betas[0]) * g for m, g in zip(first, grad, strict=True)]
        second = [betas[1] * v + (1 - betas[1]) * g * g for v, g in zip(second, grad, strict=True)]
        update = [
            m / (1 - betas[0] ** t) / ((v / (1 - betas[1] ** t)) ** 0.5 + eps) + decay * w
            for m, v, w in zip(first, second, weights, strict=True)
        ]
        norm, update_norm = sum(w * w for w in weights) ** 0.5, sum(u * u for u in update) ** 0.5
        ratio = norm / update_norm if decay and norm > 0 and update_norm > 0 else 1.0
        weights = [w - lr * ratio * u for w, u in zip(weights, update, strict=True)]
    return weights


def lars_reference(weights, grads, lr, decay, momentum=0.9, coefficient=0.02, eps=1e-3):
    """You et al. 2017, algorithm 1, an element at a time."""
    velocity = [0.0] * len(weights)
    for grad in grads:
        norm, grad_norm = sum(w * w for w in weights) ** 0.5, sum(g * g for g in grad) ** 0.5
        adapt = decay and norm > 0 and grad_norm > 0
        ratio = coefficient * norm / (grad_norm + decay * norm + eps) if adapt else 1.0
        velocity = [
            momentum * v + lr * ratio * (g + decay * w) for v, g, w in zip(velocity, grad, weights, strict=True)
        ]
        weights = [w - v for w, v in zip(weights, velocity, strict=True)]
    return weights


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("start", [[0.3, -0.2, 0.9], [0.0, 0.0, 0.0]])
@pytest.mark.parametrize(
    ("name", "keys", "reference"),
    [("lamb", {}, lamb_reference), ("lars", {"trust_coefficient": 0.02, "eps": 1e-3}, lars_reference)],
)
def test_lamb_and_lars_equal_their_definitions(name, keys, reference, start, decay):
    layer = nn.Linear(3, 1, bias=False, dtype=torch.double)
    layer.weight.data = torch.tensor([start], dtype=torch.double)
    optimizer = build_optimizer(layer, config(name, weight_decay=decay, **keys), 0.1)
    grads = [[0.1, -0.2, 0.3], [0.0, 0.0, 0.0], [0.5, 0.1, -0.7], [1.0, 0.0, 0.2]]
    for grad in grads:
        layer.weight.grad = torch.tensor([grad], dtype=torch.double)
        optimizer.step()
    assert layer.weight[0].tolist() == pytest.approx(reference(start, grads, 0.1, decay), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_layers_are_rescaled_one_by_one(name):
    together, alone = small(), small()
    together_optimizer = build_optimizer(together, config(name, weight_decay=0.1, weight_decay_norm=0.0), 0.1)
    train(together, together_optimizer, 1)
    train(alone, torch.optim.SGD(alone.parameters(), lr=0.0), 1)
    for layer, other in ((0, 3), (3, 0)):
        single = copy.deepcopy(alone)
        single[layer].weight.grad = alone[layer].weight.grad.clone()
        single[other].requires_grad_(False)
        single[1].requires_grad_(False)
        build_optimizer(single, config(name, weight_decay=0.1), 0.1).step()
        torch.testing.assert_close(single[layer].weight, together[layer].weight)


@pytest.mark.parametrize("name", ALL)
def test_state_survives_a_restart(name):
    through, restarted = small(), small()
    keys = config(name, weight_decay=0.01, weight_decay_norm=0.0)
    train(through, build_optimizer(through, keys, 0.01), 10)

    before = build_optimizer(restarted, keys, 0.01)
    train(restarted, before, 4)
    file = io.BytesIO()
    torch.save({"model": restarted.state_dict(), "optimizer": before.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh = small(seed=1)
    after = build_optimizer(fresh, keys, 0.01)
    fresh.load_state_dict(saved["model"])
    after.load_state_dict(saved["optimizer"])
    train(fresh, after, 6, first=4)
    assert all(torch.equal(a, b) for a, b in zip(through.parameters(), fresh.parameters(), strict=True))


@pytest.mark.parametrize("name", ["lamb", "lars", "rmsprop_tf"])
def test_steps_never_wait_for_the_device(name):
    # A meta tensor has no value: any look at one from the host raises.
    model = small(device="meta")
    optimizer = build_optimizer(model, config(name, weight_decay=0.1, weight_decay_norm=0.0), 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for _ in range(2):
        optimizer.step()
    with pytest.raises(RuntimeError):
        model[0].weight.sum().item()
