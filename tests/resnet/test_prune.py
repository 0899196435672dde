"""`resnet prune`, and what becomes of a pruned run."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import resnet
import resnet.build
from launch.cli import main as launch
from launch.runs.checks import check_existing
from recipes.load import load
from recipes.schema.model import Model
from resnet.net import build_model
from resnet.tools.cli import main
from resnet.tools.export import measure
from resnet.tools.export.prune import IMPORTANCES, Pruning, check, estimate_statistics, with_zeros, without_channels
from resnet.tools.export.timm_config import timm_name
from resnet.tools.export.torchvision_source import model_source
from resnet.tools.weights import load_alone
from tests.helpers import TINY, evaluation, metrics, newest, same, status, train, weights

NET = ["model.activation=prelu", "model.blurpool=true", "model.stochastic_depth=0.1"]


class Made(NamedTuple):
    run: Path
    pruned: Path
    words: list[str]
    said: str


@pytest.fixture(scope="module")
def made(tmp_path_factory, shapes) -> Made:
    """A run, and what `resnet prune RUN --amount 0.5` makes of it."""
    pytest.importorskip("torch_pruning")
    root = tmp_path_factory.mktemp("runs")
    words = [*TINY, *NET, f"data.train={shapes}", f"run.root={root}", "epochs=1", "wandb.sweep=abc"]
    assert train(*words, "run.name=first", "model.freeze_backbone=false") == 0
    return Made(root / "first", root / "first-pruned", words, prune(root / "first", "--amount", 0.5))


def prune(*words: object) -> str:
    """Run the command with little time for timing; returns what it prints."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr(measure, "TIMED_SECONDS", 0.1)
        main(["prune", *map(str, words)])
    return said.getvalue()


def refused(capsys, *words: object) -> str:
    with pytest.raises(SystemExit) as left:
        main(["prune", *map(str, words)])
    assert left.value.code == 2
    return capsys.readouterr().err


# What is made


def test_half_of_all_channels_are_gone(made):
    recipe = resnet.Run(made.pruned).recipe
    assert recipe.model.channels == {
        "conv1": 32,
        "layer1.0.conv1": 32,
        "layer2.0.conv1": 64,
        "layer2": 64,
        "layer3.0.conv1": 128,
        "layer3": 128,
    }
    before, after = weights(made.run), weights(made.pruned)
    assert before.keys() == after.keys()
    assert after["layer2.0.conv1.weight"].shape == (64, 32, 3, 3)
    assert after["fc.weight"].shape == (10, 128)
    assert torch.equal(after["layer1.0.relu.weight"], before["layer1.0.relu.weight"])
    kept = {tuple(row.flatten().tolist()) for row in before["conv1.weight"]}
    assert all(tuple(row.flatten().tolist()) in kept for row in after["conv1.weight"])

    record = json.loads((made.pruned / "artefact.json").read_text())
    parameters = sum(t.numel() for name, t in after.items() if "running" not in name and "num_batches" not in name)
    assert record["measured"]["after"]["parameters"] == parameters < 0.27 * record["measured"]["before"]["parameters"]
    assert record["kind"] == "prune"
    assert record["settings"]["amount"] == 0.5
    assert record["run"] == "first"
    assert "first-pruned" in made.said
    assert "x0.2" in made.said


def test_the_pruned_run_is_a_run(made, capsys):
    run = resnet.Run(made.pruned)
    network = resnet.load(made.pruned / "final.safetensors")
    assert same(network.state_dict(), run.load().state_dict())
    found = run.evaluate()
    assert found.top1 == run.status["top1"] == evaluation(made.pruned)["top1"] == metrics(made.pruned)[-1]["val/top1"]
    assert found.classes == run.classes
    assert run.status["state"] == "finished"
    assert run.recipe.evidence is None
    assert run.recipe.wandb.sweep is None
    with pytest.raises(SystemExit):
        launch(["status", "--root", str(made.run.parent)])
    assert "channels={" in capsys.readouterr().out
    main(["report", str(made.pruned)])
    assert "pruned" in (made.pruned / "report.html").read_text(encoding="utf-8")
    main(["diff", str(made.run), str(made.pruned)])
    assert "model.channels {} | {" in capsys.readouterr().out
    assert resnet.board(made.run.parent).is_file()


def test_a_pruned_run_is_not_trained_again_in_its_place(made, capsys):
    before = weights(made.pruned)
    assert train(f"recipe={made.pruned}") == 2
    assert "has no checkpoint to go on from" in capsys.readouterr().err
    assert same(weights(made.pruned), before)


def test_the_shape_travels_with_the_weights(made, tmp_path, capsys):
    pruned = tmp_path / "first-pruned"
    shutil.copytree(made.pruned, pruned)
    words = [*made.words, f"model.pretrained={pruned}", "run.name=tuned"]
    assert train(*words, "max_steps=3") == 0
    assert f"{pruned} is pruned: the network takes its channels" in capsys.readouterr().out
    tuned = resnet.Run(made.run.parent / "tuned")
    assert tuned.recipe.model.channels == resnet.Run(pruned).recipe.model.channels
    assert tuned.recipe.model.pretrained == str(pruned)
    info = resnet.weights_info(tuned.path / "final.safetensors")
    assert info is not None
    assert info.model.channels == tuned.recipe.model.channels
    assert resnet.build_model(load(words).recipe, 10).conv1.out_channels == 32
    # The same command goes on, also where the weights that it began with are gone.
    shutil.rmtree(pruned)
    assert train(*words, "max_steps=6") == 0
    said = capsys.readouterr()
    assert "continues from" in said.out
    assert "channels" not in said.err
    assert status(tuned.path)["step"] == 6
    check_existing(tuned.path, load([*words, "max_steps=9"]).recipe)
    # From its checkpoint another run starts in its shape.
    assert train(*made.words, "max_steps=7", "run.name=other", f"resume={tuned.path}") == 0
    assert resnet.Run(tuned.path.with_name("other")).recipe.model.channels == tuned.recipe.model.channels
    # Without the weights that brought them, other channels are another network.
    assert train(*made.words, "max_steps=9", "run.name=tuned") == 2
    assert "model.channels" in capsys.readouterr().err
    assert weights(tuned.path, f"{newest(tuned.path)}/model.safetensors")["conv1.weight"].shape[0] == 32


def test_weights_of_a_pruned_network_of_another_kind_are_refused_as_such(made, capsys):
    words = [*made.words, f"model.pretrained={made.pruned}", "run.name=silu", "model.activation=silu"]
    assert train(*words) == 2
    assert "It needs model.activation=prelu" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"conv1.* and 3 more.*; here: no model.channels"):
        load_alone(made.pruned / "final.safetensors", load(made.words).recipe)


def test_torchvision_alone_builds_the_pruned_network(made):
    network, model = resnet.Run(made.pruned).load(), resnet.Run(made.pruned).recipe.model
    names: dict = {}
    exec(model_source(model, 10, "final.safetensors"), names)
    theirs = names["build"]().eval()
    theirs.load_state_dict(weights(made.pruned))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), network(images))
    bottlenecks = Model(name="resnet50", channels={"layer1": 32, "layer2.0.conv2": 24})
    exec(model_source(bottlenecks, 10, "x.safetensors"), names)
    with torch.device("meta"):
        shapes = [
            {n: t.shape for n, t in net.state_dict().items()}
            for net in (names["build"](), build_model(bottlenecks, 10))
        ]
    assert shapes[0] == shapes[1]
    with pytest.raises(ValueError, match=r"timm has no such network .*channels of its own"):
        timm_name(bottlenecks)


# How it is pruned


def tiny(**keys) -> resnet.net.ResNet:
    torch.manual_seed(0)
    return build_model(Model(**{"block": "basic", "layers": [1, 1, 1], "stem": "cifar", **keys}), 5).eval()


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_the_channels_that_matter_least_go(importance):
    pytest.importorskip("torch_pruning")
    network = tiny()
    names = [name for name in network.state_dict() if name.startswith(("layer1.0.conv1", "layer1.0.bn1"))]
    with torch.no_grad():
        for tensor in (network.state_dict()[name] for name in names if not name.endswith("tracked")):
            tensor[:16] *= 1e-3
        network.layer1[0].conv2.weight[:, :16] *= 1e-3
    small = without_channels(network, Pruning(0.25, importance=importance))
    assert torch.equal(small.layer1[0].bn1.weight, network.layer1[0].bn1.weight[16:])


@pytest.mark.parametrize(
    ("keys", "skip", "untouched"),
    [
        ({}, ("stem",), {"conv1"}),
        ({}, ("layer1", "layer3"), {"conv1", "layer1.0.conv1", "layer3.0.conv1", "layer3"}),
        ({"block": "bottleneck", "groups": 2}, ("layer1",), {"layer1.0.conv1", "layer1.0.conv2", "layer1"}),
    ],
)
def test_parts_keep_their_channels(keys, skip, untouched):
    pytest.importorskip("torch_pruning")
    network = tiny(**keys)
    small = without_channels(network, Pruning(0.5, skip=skip))
    convolutions = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    inner = {name for name in convolutions if name == "conv1" or name.split(".")[-1] in ("conv1", "conv2")}
    bottlenecks = keys.get("block") == "bottleneck"
    inner -= {name for name in inner if name.endswith("conv2") and not bottlenecks}
    streams = {"layer1", "layer2", "layer3"} if bottlenecks else {"layer2", "layer3"}
    assert small.config.channels.keys() == (inner | streams) - untouched
    assert small(torch.rand(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize(
    "keys", [{"block": "preact_basic"}, {"block": "bottleneck", "kernels": [1, 3], "in_channels": 1}]
)
def test_channels_of_other_blocks_go(keys):
    pytest.importorskip("torch_pruning")
    network = tiny(**keys, layers=[1, 1], widths=[8, 16])
    small = without_channels(network, Pruning(0.5))
    assert small.layer2[0].conv1.out_channels * 2 == network.layer2[0].conv1.out_channels
    assert small(torch.rand(1, network.config.in_channels, 32, 32)).shape == (1, 5)
    for others in ({"attention": "se"}, {"stem": "deep"}):
        with pytest.raises(ValueError, match="lose no channels"):
            check(Pruning(0.5), tiny(**{**keys, **others}).config)


def test_the_smallest_weights_become_zeros():
    network = tiny()
    before = torch.cat([m.weight.flatten() for m in network.modules() if isinstance(m, nn.Conv2d)])
    head = network.fc.weight.clone()
    with_zeros(network, 0.3)
    after = torch.cat([m.weight.flatten() for m in network.modules() if isinstance(m, nn.Conv2d)])
    gone = after == 0
    assert gone.float().mean().item() == pytest.approx(0.3, abs=1e-5)
    assert before[gone].abs().max() <= before[~gone].abs().min()
    assert torch.equal(after[~gone], before[~gone])
    assert torch.equal(network.fc.weight, head)


def test_statistics_are_means_over_batches():
    network = tiny()
    batches = [np.random.default_rng(seed).normal(size=(4, 3, 8, 8)).astype(np.float32) for seed in range(3)]
    estimate_statistics(network, batches)
    with torch.no_grad():
        seen = [network.conv1(torch.from_numpy(batch)) for batch in batches]
    torch.testing.assert_close(network.bn1.running_mean, torch.stack([one.mean((0, 2, 3)) for one in seen]).mean(0))
    assert not network.bn1.training
    assert network.bn1.momentum == 0.1


# Zeros


def test_zeros_keep_the_shape(made, monkeypatch):
    opened, open_sources = [], resnet.build.open_sources
    monkeypatch.setattr(resnet.build, "open_sources", lambda data, *_: opened.append(data) or open_sources(data))
    said = prune(made.pruned, "--amount", 0.3, "--unstructured", "--samples", 20, "--name", "zeros #2")
    assert len(opened) == 1
    assert "30.0% of the convolutions' weights are zero" in said
    run = resnet.Run(made.run.with_name("zeros #2"))
    assert run.recipe.model == resnet.Run(made.pruned).recipe.model
    assert (weights(run.path)["layer3.0.conv2.weight"] == 0).any()
    assert json.loads((run.path / "artefact.json").read_text())["measured"]["images"] == 20
    assert run.status["top1"] == evaluation(run.path)["top1"]
    # The command for its fine-tuning is of this run, whatever it is called.
    words = shlex.split(said.partition("fine-tune it: accelerate launch train.py ")[2])
    assert words[0] == f"recipe={run.path}"
    assert train(*words, "max_steps=1") == 0
    assert resnet.Run(made.run.with_name("zeros #2-tuned")).recipe.model.pretrained == str(run.path)


# Mistakes


def test_mistakes_are_told_before_anything_is_made(made, tmp_path, monkeypatch, capsys):
    there = sorted(made.run.parent.iterdir())
    for amount in (0, 1, 1.5, "nan"):
        assert f"--amount: {amount}: give a share" in refused(capsys, made.run, "--amount", amount, "--name", "new")
    assert "first-pruned is there: choose another --name" in refused(capsys, made.run, "--amount", 0.5)
    for words, message in (
        (["--amount", 0.999, "--name", "new"], "leaves none of the 64 channels of conv1"),
        (["--amount", 0.5, "--name", "new", "--skip", "layer4"], "--skip layer4: this network has stem, layer1"),
        (["--amount", 0.5, "--name", "new", "--unstructured", "--skip", "stem"], "leave out --unstructured"),
        (["--amount", 0.5, "--name", "../new"], "without slashes"),
        (["word", "--amount", 0.5], "unexpected argument word"),
        (["--amount", 0.5, "--samples", 0], "--samples: 0: it takes 1 or more"),
    ):
        assert message in refused(capsys, made.run, *words)
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(made.run / "recipe.yaml", empty)
    assert "has no checkpoint" in refused(capsys, empty, "--amount", 0.5)
    shutil.copy(made.run / "final.safetensors", tmp_path / "alone.safetensors")
    assert "is in no run" in refused(capsys, tmp_path / "alone.safetensors", "--amount", 0.5)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert "pip install 'resnet-launch[prune]'" in refused(capsys, made.run, "--amount", 0.5, "--name", "new")
    assert sorted(made.run.parent.iterdir()) == there


def test_each_group_keeps_a_channel():
    with pytest.raises(ValueError, match=r"0.8 leaves none of the 4 channels of layer1.0.conv1 in each of 32 groups"):
        check(Pruning(0.8), Model(name="resnext50_32x4d"))
