"""Gradual unfreezing, stochastic weight averaging and `resnet average`, in a run of four epochs of two steps."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from recipes.schema.model import Model
from resnet.checkpoint.commit import name_of
from resnet.checkpoint.snapshot import EMA, MODEL, read_rest
from resnet.net import build_model
from resnet.rundir.status import read_status
from resnet.tools.cli import main
from resnet.weights_file import read_info
from tests.helpers import TINY, column, same, train, weights


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory) -> Path:
    """Of the classifier alone, from its second epoch on of stages 2 and 3 too; with averages from the second on."""
    root = tmp_path_factory.mktemp("runs")
    torch.manual_seed(1)
    network = build_model(Model(block="basic", layers=[1, 1, 1]), 10)
    safetensors.torch.save_file(network.state_dict(), root / "first.safetensors")
    words = [*TINY, f"data.train={shapes}", f"run.root={root}", "batch_size=80", "max_batch_per_device=40"]
    words += [f"model.pretrained={root}/first.safetensors", "optimizer={name: nadamw, lr: 1e-3}", "schedule.name=poly"]
    unfrozen = ["model.unfreeze={1: layer2}", "swa.start_epoch=2", "checkpoint.keep=4"]
    assert train(*words, "epochs=4", *unfrozen, "run.name=r") == 0
    frozen = ["epochs=4", "model.freeze_backbone=true", "eval.metric=top5", "run.name=frozen"]
    assert train(*words, *frozen, "max_steps=2") == 0
    return root / "r"


def of_step(run: Path, step: int, file: str = MODEL) -> dict[str, torch.Tensor]:
    return weights(run / "checkpoints" / name_of(step), file)


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """The parts of a network."""
    return {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}


def assert_mean(found: dict[str, torch.Tensor], states: list[dict[str, torch.Tensor]], parts: tuple[str, ...] = ("",)):
    for name, tensor in found.items():
        if tensor.is_floating_point() and name.endswith(parts):
            torch.testing.assert_close(tensor, torch.stack([state[name] for state in states]).mean(0), msg=name)


def test_what_is_frozen_does_not_move_and_then_it_does(run):
    said = (run / "logs" / "attempt-1" / "rank-0.log").read_text()
    assert "what trains: at first the classifier alone, from epoch 1 on layer2 and all behind it" in said
    assert said.count("epoch 1: layer2 and all behind it trains from here on") == 1
    assert same(of_step(run, 2), of_step(run.with_name("frozen"), 2))
    first = safetensors.torch.load_file(run.with_name("first.safetensors"))
    assert changed(first, of_step(run, 2)) == {"fc"}
    assert changed(of_step(run, 2), of_step(run, 4)) == {"layer2", "layer3", "fc"}
    moments = [len(read_rest(run / "checkpoints" / name_of(step))["optimizer"]["state"]) for step in (2, 4)]
    trained = [name for name, _ in build_model(Model(block="basic", layers=[1, 1, 1]), 10).named_parameters()]
    assert moments == [2, sum(name.startswith(("layer2", "layer3", "fc")) for name in trained)]


def test_the_average_is_of_what_epochs_end_with(run):
    assert same(of_step(run, 2, EMA), of_step(run, 2))
    assert same(of_step(run, 4, EMA), of_step(run, 4))
    assert_mean(of_step(run, 8, EMA), [of_step(run, step) for step in (4, 6, 8)])
    assert not same(of_step(run, 8, EMA), of_step(run, 8))


def test_an_average_may_come_before_its_beginning_and_ends_with_the_run(run, capsys):
    frozen = run.with_name("frozen")
    words = [f"recipe={frozen}/recipe.yaml", f"run.root={run.parent}", "run.name=frozen", "max_steps=5"]
    before = (frozen / "recipe.yaml").read_bytes()
    assert train(*words, "swa.start_epoch=1") == 2
    told = "has no average of the weights, and swa is to begin with epoch 1, of 1: set swa=off, or swa.start_epoch=2 or"
    assert told in capsys.readouterr().err
    assert (frozen / "recipe.yaml").read_bytes() == before
    assert train(*words, "swa.start_epoch=2", "eval.metric=top1") == 0
    assert_mean(of_step(frozen, 5, EMA), [of_step(frozen, step) for step in (4, 5)])
    # What was the best by another metric, of which no figure is as high, is none any more.
    assert read_status(frozen)["best"] == max(column(frozen, "val/top1")) < max(column(frozen, "val/top5"))


def test_one_average_does_not_go_on_as_the_other(run, capsys):
    words = [f"recipe={run}/recipe.yaml", f"run.root={run.parent}", "run.name=r", "epochs=5"]
    assert train(*words, "swa=off", "ema.decay=0.9") == 2
    assert "has an equal average of the weights (swa), and the recipe asks for ema" in capsys.readouterr().err


def test_weights_of_a_run_are_averaged_and_usable(run, capsys):
    files = [run / "checkpoints" / name_of(step) / MODEL for step in (8, 4, 6)]
    twice = map(str, [*files, files[1]])
    main(["average", str(run), "--checkpoints", *twice, "--output", str(run / "three.safetensors")])
    assert "the mean of 3 sets of weights: step-00000004/model" in capsys.readouterr().out
    assert_mean(weights(run, "three.safetensors"), [of_step(run, step) for step in (4, 6, 8)])

    main(["average", str(run), "--last", "2", "--recompute-bn", "64"])
    said = capsys.readouterr().out
    found, both = weights(run, "average.safetensors"), [of_step(run, step, EMA) for step in (6, 8)]
    assert_mean(found, both, ("conv1.weight", "fc.weight", "bn2.bias"))
    with pytest.raises(AssertionError):
        assert_mean(found, both, ("running_var",))
    info = read_info(run / "average.safetensors")
    assert info is not None
    assert info.step == 8
    main(["eval", str(run / "average.safetensors"), str(run), "--json"])
    again, own = json.loads(capsys.readouterr().out)
    assert f"average.safetensors: top-1 {again['top1']:.2f}% of 40 images; the run's best: {own['top1']:.2f}%" in said
    main(["eval", str(run)])
    assert "SWA" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "RUN/final.safetensors"], "final.safetensors is among what "),
        (["--output", "RUN/checkpoints/mean.safetensors"], "keeps its own weights in: give another name"),
        (["--last", "9"], "--last 9: there are weights of 4 steps only; checkpoint.keep"),
        (["--checkpoints", "epoch-3"], "epoch-0003.safetensors: checkpoint.weights_every keeps such files"),
        (["--checkpoints", "best", "../first.safetensors"], "there is no file ../first.safetensors"),
    ],
)
def test_what_cannot_be_averaged_is_refused(run, capsys, words, message):
    with pytest.raises(SystemExit) as left:
        main(["average", str(run), *(word.replace("RUN", str(run)) for word in words)])
    assert left.value.code == 2
    assert message in capsys.readouterr().err
