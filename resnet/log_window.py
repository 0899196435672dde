"""The log's lines: what the steps since the last one amounted to."""

from __future__ import annotations

import time
from typing import Any

import torch

from recipes.plan import Plan
from resnet.process.environment import node_name
from resnet.ranks import gather, of_all_ranks
from resnet.rundir.metrics_log import INPUT_DIGEST
from resnet.stragglers import Seconds, StepTimes, told
from resnet.trainer import Trainer, TrainingError


def log_is_due(plan: Plan, step: int) -> bool:
    """Whether a line is written once `step` steps are done: every `log_every` steps, and at the end of each epoch."""
    return step % plan.recipe.log_every == 0 or step % plan.steps_per_epoch == 0 or plan.evaluates_after(step)


def log_window(trainer: Trainer, clock: Clock, norm: torch.Tensor | None) -> None:
    """Write a line on the steps since the last one. Raises TrainingError where training has gone wrong."""
    plan, state = trainer.plan, trainer.state
    begin = time.perf_counter()
    means = state.window.read()
    if trainer.times:
        trainer.times.add_line(time.perf_counter() - begin)
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
        self.hosts: list[str] = []
        if trainer.plan.world_size > 1:
            self.hosts = of_all_ranks(node_name())
            trainer.times = StepTimes(trainer.device, trainer.parameters[0])
        self.restart()

    def restart(self) -> None:
        self.start, self.step = time.perf_counter(), self.trainer.state.step
        self.trainer.waited = 0.0
        if self.trainer.times:
            self.trainer.times.read(0)

    def read(self) -> dict[str, Any]:
        seconds = max(time.perf_counter() - self.start, 1e-9)
        plan, step = self.trainer.plan, self.trainer.state.step
        samples = plan.samples_seen(step) - plan.samples_seen(self.step)
        row = {"images_per_second": samples / seconds, "data_wait": min(self.trainer.waited / seconds, 1.0)}
        row |= self._of_ranks(seconds, step - self.step)
        if self.trainer.device.type == "cuda":
            row["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        self.restart()
        return row

    def _of_ranks(self, seconds: float, steps: int) -> dict[str, Any]:
        """What several ranks take a step: four numbers of each go to rank 0, which tells of them."""
        if not self.trainer.times or not steps:
            return {}
        compute, wait = self.trainer.times.read(steps * self.trainer.plan.accumulation)
        mine = torch.tensor([seconds, self.trainer.waited, compute, wait], dtype=torch.float64) / steps
        ranks = gather(mine.to(self.trainer.device))
        return {} if ranks is None else told([Seconds(*values) for values in ranks.tolist()], self.hosts)
