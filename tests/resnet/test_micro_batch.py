"""`max_batch_per_device=auto`: the largest micro-batch that fits is found, and kept by the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import resnet.micro_batch
from launch.derived import follows
from recipes.load import load
from recipes.plan import micro_batches
from resnet.build import build_accelerator
from resnet.checkpoint.commit import newest_first
from resnet.checkpoint.snapshot import read_rest
from resnet.micro_batch import first_that_fits, largest_micro_batch
from resnet.trainer import Trainer
from tests.helpers import cores, train, unchanged_process, weights


def no_memory_for(monkeypatch: pytest.MonkeyPatch, most: int) -> list[tuple[int, int]]:
    """Let steps of more images fail as on a GPU, in words of cuDNN; micro-batch and accumulation of the others."""
    made, step = [], resnet.micro_batch.train_step

    def limited(trainer: Trainer) -> None:
        plan = trainer.plan
        if plan.micro_batch > 2 * most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if plan.micro_batch > most:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        step(trainer)
        made.append((plan.micro_batch, plan.accumulation))

    monkeypatch.setattr(resnet.micro_batch, "train_step", limited)
    return made


def test_sizes_are_tried_downwards_until_two_real_steps_go_through(tiny, monkeypatch) -> None:
    made = no_memory_for(monkeypatch, 5)
    recipe = load([*tiny, "max_batch_per_device=auto", "augment.mixup=0.2", "swa.start_epoch=1"]).recipe
    with unchanged_process(), cores(1):
        accelerator = build_accelerator(recipe)
        assert first_that_fits(recipe, 10, accelerator, micro_batches(16, 1), 0, {}) == (4, 8)
        # Gradients of one micro-batch wait for the next one's.
        assert made == [(4, 2), (4, 2)]
        no_memory_for(monkeypatch, 1)
        with pytest.raises(ValueError, match="not even 2 images of 32 px fit"):
            first_that_fits(recipe, 10, accelerator, micro_batches(16, 1), 0, {})
        monkeypatch.setattr(resnet.micro_batch, "train_step", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            first_that_fits(recipe, 10, accelerator, micro_batches(16, 1), 0, {})


def test_a_share_is_tried_by_its_divisors() -> None:
    assert micro_batches(720, 8) == [90, 45, 30, 18, 15, 10, 9, 6, 5, 3, 2]


def test_a_run_keeps_what_it_found(tiny, tmp_path: Path, monkeypatch, capsys) -> None:
    def attempt(name: str, limit: object, steps: int) -> None:
        words = [f"max_batch_per_device={limit}", f"max_steps={steps}", f"run.root={tmp_path}", f"run.name={name}"]
        assert train(*tiny, *words) == 0

    with monkeypatch.context() as patched:
        patched.setattr(resnet.micro_batch, "largest_micro_batch", lambda *_: (4, "it holds 4"))
        attempt("found", "auto", 2)
    assert "it holds 4" in capsys.readouterr().out
    attempt("found", "auto", 4)
    assert read_rest(newest_first(tmp_path / "found" / "checkpoints")[0])["micro_batch"] == 4
    attempt("given", 4, 4)
    found, given = (weights(tmp_path / name) for name in ("found", "given"))
    assert all(torch.equal(found[name], given[name]) for name in given)


def test_a_cpu_takes_the_whole_share_and_launch_says_that_it_is_to_be_found(tiny) -> None:
    loaded = load([*tiny, "max_batch_per_device=auto"])
    with unchanged_process(), cores(1):
        accelerator = build_accelerator(loaded.recipe)
        size, told = largest_micro_batch(loaded.recipe, 10, accelerator, 0, {}, 16)
        bounded = largest_micro_batch(loaded.recipe, 10, accelerator, 0, {}, 8)
    assert (size, told) == (16, "max_batch_per_device=auto: on a CPU all 16 images of a device in one pass")
    what = "micro-batches of 8, the most that all numbers of nodes share"
    assert bounded == (8, f"max_batch_per_device=auto: on a CPU {what}")
    assert follows(loaded, 1)["micro_batch"] is None
