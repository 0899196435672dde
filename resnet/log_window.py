"""The log's lines: what the steps since the last one amounted to."""

from __future__ import annotations

import time
from typing import Any

import torch

from recipes.plan import Plan
from resnet.rundir.metrics_log import INPUT_DIGEST
from resnet.trainer import Trainer, TrainingError


def log_is_due(plan: Plan, step: int) -> bool:
    """Whether a line is written once `step` steps are done: every `log_every` steps, and at the end of each epoch."""
    return step % plan.recipe.log_every == 0 or step % plan.steps_per_epoch == 0 or plan.evaluates_after(step)


def log_window(trainer: Trainer, clock: Clock, norm: torch.Tensor | None) -> None:
    """Write a line on the steps since the last one. Raises TrainingError where training has gone wrong."""
    plan, state = trainer.plan, trainer.state
    means = state.window.read()
    if means.bad_step >= 0:
        bad = means.bad_step + 1
        raise TrainingError(
            f"the loss is not finite since step {bad} (epoch {plan.epoch(bad):.2f}, "
            f"lr {plan.hyper(means.bad_step).lr:g}): a lower optimizer.lr, a warm-up or grad_clip_norm can help; "
            "checkpoints from before it are kept"
        )
    if means.broken > trainer.recipe.data.max_broken * plan.samples:
        raise TrainingError(
            f"{means.broken} of this epoch's images so far could not be read, more than data.max_broken "
            f"{trainer.recipe.data.max_broken:g} allows:{trainer.examples_of_broken()}"
        )
    row: dict[str, Any] = {
        "step": state.step,
        "epoch": plan.epoch(state.step),
        "samples": plan.samples_seen(state.step),
    }
    row |= {"lr": plan.hyper(state.step - 1).lr, "train/loss": means.loss, "train/top1": means.top1}
    if means.input_digest is not None:
        row[INPUT_DIGEST] = means.input_digest
    if norm is not None:
        row["grad_norm"] = norm.item()
    if means.broken:
        row["broken_images"] = means.broken
    if state.scaler.is_enabled():
        row |= {"skipped_steps": means.skipped, "loss_scale": state.scaler.get_scale()}
    trainer.hooks.log(row | clock.read())
    state.window.clear(epoch_ends=state.step % plan.steps_per_epoch == 0)


class Clock:
    """Throughput and waiting since the last line of the log; evaluations do not count."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.restart()

    def restart(self) -> None:
        self.start, self.samples = time.perf_counter(), self.trainer.plan.samples_seen(self.trainer.state.step)
        self.trainer.waited = 0.0

    def read(self) -> dict[str, float]:
        seconds = max(time.perf_counter() - self.start, 1e-9)
        samples = self.trainer.plan.samples_seen(self.trainer.state.step) - self.samples
        row = {"images_per_second": samples / seconds, "data_wait": min(self.trainer.waited / seconds, 1.0)}
        if self.trainer.device.type == "cuda":
            row["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        self.restart()
        return row
