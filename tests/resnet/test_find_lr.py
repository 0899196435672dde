"""`resnet find-lr`: it trains as the recipe does at rates that grow, and reads a rate off the losses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from recipes.load import load
from resnet.tools.cli import main
from resnet.tools.find_lr import find_lr, judged
from tests.helpers import cores, metrics, train, unchanged_process


def test_drawn_shapes_suggest_what_they_are_trained_with(tiny, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with unchanged_process(), cores(1):
        main(["find-lr", *tiny, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert 0.001 < found["steepest"] < 0.1
    assert 0.0005 < found["tenth"] < 0.1
    assert found["diverged"]
    assert len(found["losses"]) < 100
    assert [file.name for file in tmp_path.iterdir()] == ["find-lr.png"]


def test_where_it_diverges_its_workers_are_ended(tiny) -> None:
    told = []
    with unchanged_process(), cores(1):
        found = find_lr(
            load([*tiny, "data.num_workers=1", "max_batch_per_device=auto"]).recipe, 1, 1e9, 20, told.append
        )
    assert found.diverged
    assert told[0].startswith("max_batch_per_device=auto: ")


def test_its_steps_are_those_of_a_run_at_these_rates(tiny, tmp_path: Path) -> None:
    # Of so small a range that the rate is as good as constant, and stated for half the batch.
    words = [*tiny, "class_weights={ring: 3}", "swa.start_epoch=1", "max_batch_per_device=8", "grad_clip_norm=1"]
    words += ["optimizer.lr_for_batch_size=8"]
    with unchanged_process(), cores(1):
        found = find_lr(load(words).recipe, 0.01, 0.01 * (1 + 1e-12), 20)
    assert (
        train(*words, "schedule.name=constant", "max_steps=20", "epochs=2", f"run.root={tmp_path}", "run.name=r") == 0
    )
    run = metrics(tmp_path / "r", "train/loss")
    assert [row["train/loss"] for row in run] == pytest.approx(found.losses, abs=1e-5)
    assert run[0]["lr"] == pytest.approx(0.02)
    assert found.lrs == pytest.approx([0.01] * 20)


def test_the_steepest_point_and_a_tenth_of_the_lowest_are_suggested() -> None:
    lrs = np.logspace(-5, 1, 121)
    decades = np.log10(lrs)
    noise = np.random.default_rng(0).normal(0, 0.02, len(lrs))
    # Falls fastest at 10^-2; what rises with it makes the least loss at about 10^-1.
    losses = 2.3 - 2 / (1 + np.exp(-6 * (decades + 2))) + np.exp(4 * decades + 1) + noise
    found = judged(lrs.tolist(), losses.tolist(), diverged=True)
    assert found.steepest is not None
    assert found.tenth is not None
    lowest = lrs[(losses - noise).argmin()]
    assert abs(np.log10(found.steepest) + 2) < 0.2
    assert abs(np.log10(found.tenth) - np.log10(lowest / 10)) < 0.3


def test_losses_that_only_rise_suggest_nothing() -> None:
    found = judged(np.logspace(-5, 1, 50).tolist(), np.linspace(2, 9, 50).tolist(), diverged=True)
    assert (found.steepest, found.tenth) == (None, None)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--from", "1", "--to", "0.1"], "the smaller one first"),
        (["--from", "0"], "two learning rates above 0"),
        (["--steps", "5"], "give 20 or more"),
    ],
)
def test_a_range_of_no_use_is_refused(options: list[str], told: str, tiny, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["find-lr", *tiny, *options])
    assert told in capsys.readouterr().err
