"""What the tests of this package share: which device they run on, a run of a second, and a look into its steps."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import resnet.loop
from resnet.trainer import Trainer
from tests.helpers import train

CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
"""Marks of what only a GPU can run; whatever else has a meaning on a CPU takes the fixture `device`."""
ON_CUDA = pytest.param("cuda", marks=CUDA)

TINY = [
    *("recipe=quickstart", "wandb.mode=disabled", "progress=off", "model.name=null", "model.block=basic"),
    *("model.layers=[1,1,1]", "batch_size=16", "epochs=1", "optimizer.lr=0.02", "log_every=1"),
    *("augment.train_size=24", "augment.val_size=24", "augment.val_resize=24", "augment.scale=[0.9,1.0]"),
    "data={source: synthetic, samples: 160, classes: 10, size: 24, num_workers: 0}",
]
"""10 steps an epoch, and 40 validation images; a net that knows its classes after 3 epochs."""


def run(folder: Path, name: str, *words: str, code: int = 0) -> Path:
    """Train in this process; the run's directory. words: TINY is changed by them; `device=` is among them."""
    assert train(*TINY, f"run.root={folder}", f"run.name={name}", *words) == code
    return folder / name


def before_each_step(monkeypatch: pytest.MonkeyPatch, act: Callable[[Trainer], object]) -> None:
    """Call `act` with the trainer at the beginning of every step."""
    step = resnet.loop.train_step

    def watched(trainer: Trainer) -> torch.Tensor | None:
        act(trainer)
        return step(trainer)

    monkeypatch.setattr(resnet.loop, "train_step", watched)


def stopped(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, *words: str, step: int) -> Path:
    """A run that SIGTERM reaches in its step `step` (0-based), and that stops with a checkpoint after it."""

    def signalled(trainer: Trainer) -> None:
        if trainer.state.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        before_each_step(patched, signalled)
        return run(folder, name, *words, code=85)


def occupy(milliseconds: int) -> None:
    """Keep the GPU's current stream busy, so that the host runs ahead of it; about so long at 2 GHz."""
    torch.cuda._sleep(2_000_000 * milliseconds)
