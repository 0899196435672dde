"""The training loop: fit, train_step, evaluate. Nothing in a step makes the host wait for the device."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from recipes.plan import Plan
from recipes.schema.recipe import Recipe
from resnet.data.loader import Batch, Key, training_keys, validation_keys
from resnet.data.on_device import draw_mix, erase, mix, normalise, soft_targets
from resnet.data.order import mix as mix_numbers
from resnet.metrics import Tally
from resnet.net import has_randomness
from resnet.optim import set_hyper
from resnet.state import TrainState, average_running_statistics, running_statistics

_DROP = 2
_MOST_NAMED = 20
"""Unreadable images that a rank names as it meets them."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message is for the user."""


class Hooks(Protocol):
    """What happens around the steps. Every rank calls each hook at the same step."""

    def log(self, row: dict[str, Any]) -> None:
        """A line for the log."""

    def after_step(self, loss: torch.Tensor) -> bool:
        """Save what is due; True asks to stop here."""
        ...

    def before_evaluation(self) -> None: ...

    def after_evaluation(self, result: dict[str, Any], best: bool) -> None: ...

    def stop_now(self) -> bool:
        """Whether to abandon an evaluation."""
        ...


@dataclass
class Trainer:
    """What the loop works with. `network` is the model as DDP and torch.compile wrapped it."""

    plan: Plan
    accelerator: Accelerator
    network: nn.Module
    state: TrainState
    classes: int
    train_samples: int
    val_samples: int
    hooks: Hooks
    batches: Iterator[Batch] = field(default_factory=lambda: iter(()))
    broken: dict[str, None] = field(default_factory=dict)
    """Images this rank could not read, each with the reason, in the order they were met."""
    waited: float = 0.0
    """Seconds spent waiting for data since the last line of the log."""

    def __post_init__(self) -> None:
        self.device = self.accelerator.device
        self.rank = self.accelerator.process_index
        self.recipe = self.plan.recipe
        self.parameters = [p for p in self.state.model.parameters() if p.requires_grad]
        self.random_layers = has_randomness(self.state.model)
        self.state.model.train()
        self.statistics = StatisticsOfStep(self.state.model) if self.plan.accumulation > 1 else None

    def keys(self) -> Iterator[Key]:
        """All the micro-batches this rank will ask for from the state's step on, evaluations included."""
        plan, start = self.plan, self.state.step
        if evaluation_is_due(self):
            yield from self.validation_keys()
        for step in range(start, plan.end_step):
            yield from training_keys(plan, self.rank, step)
            if plan.evaluates_after(step + 1):
                yield from self.validation_keys()

    def validation_keys(self) -> list[Key]:
        ranks, size = self.accelerator.num_processes, self.recipe.augment.val_size
        return list(validation_keys(self.val_samples, self.eval_batch_size, ranks, self.rank, size))

    @property
    def eval_batch_size(self) -> int:
        return self.recipe.eval.batch_size or self.plan.micro_batch

    def most_validation_batches(self) -> int:
        """The number on the rank that has the most, so that all ranks can ask one another whether to go on."""
        return -(-self.val_samples // (self.eval_batch_size * self.accelerator.num_processes))

    def next_batch(self) -> Batch:
        start = time.perf_counter()
        batch = next(self.batches)
        self.waited += time.perf_counter() - start
        for image in batch.broken:
            if image not in self.broken and len(self.broken) < _MOST_NAMED:
                print(f"unreadable image: {image}", file=sys.stderr)
            self.broken[image] = None
        return batch

    def examples_of_broken(self) -> str:
        return "".join(f"\n  {image}" for image in list(self.broken)[:5]) or " met by other ranks"


def fit(trainer: Trainer) -> str:
    """Train from the state's step to the plan's end; "finished", or "stopped" where a hook asked for it.

    Raises TrainingError where the loss is not finite or too many images are broken.
    """
    plan, state, hooks = trainer.plan, trainer.state, trainer.hooks
    if evaluation_is_due(trainer) and not evaluate_and_report(trainer):
        return "stopped"
    clock = _Clock(trainer)
    while state.step < plan.end_step:
        loss, norm = train_step(trainer)
        state.step += 1
        if log_is_due(plan, state.step):
            log_window(trainer, clock, norm)
        if hooks.after_step(loss):
            return "stopped"
        if evaluation_is_due(trainer):
            if not evaluate_and_report(trainer):
                return "stopped"
            clock.restart()
    return "finished"


def train_step(trainer: Trainer) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One optimizer step: its last micro-batch's loss, and the gradient's L2 norm before clipping where it is known."""
    plan, state, step = trainer.plan, trainer.state, trainer.state.step
    set_hyper(state.optimizer, plan.hyper(step))
    if trainer.statistics:
        trainer.statistics.begin()
    loss = torch.empty(0)
    for turn in range(plan.accumulation):
        last = turn == plan.accumulation - 1
        with contextlib.nullcontext() if last else trainer.accelerator.no_sync(trainer.network):
            loss, share = _forward(trainer, trainer.next_batch(), turn)
            # The gradient of a step is the mean over its samples, and DDP averages over ranks.
            weight = share * plan.world_size
            state.scaler.scale(loss if weight == 1 else loss * weight).backward()
        if trainer.statistics:
            trainer.statistics.after_micro_batch(last)
    norm = _clip(trainer, step)
    state.scaler.step(state.optimizer)
    if state.scaler.is_enabled():
        state.window.add_skipped(state.scaler, state.optimizer)
        state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema and trainer.recipe.ema:
        state.ema.update(state.model, step, copy=plan.epoch(step) < trainer.recipe.ema.start_epoch)
    return loss.detach(), norm


def _forward(trainer: Trainer, batch: Batch, turn: int) -> tuple[torch.Tensor, float]:
    """Mean loss of a micro-batch, and its share of the step's samples; counted into the window."""
    plan, recipe, step = trainer.plan, trainer.recipe, trainer.state.step
    slot = trainer.rank * plan.accumulation + turn
    assert (batch.key.epoch, *batch.key[1:3]) == (step // plan.steps_per_epoch, *plan.slot(step, slot)), batch.key
    labels = batch.labels.to(trainer.device)
    images = _input(batch.images, recipe, trainer.device)
    if batch.erased is not None:
        images = erase(images, batch.erased.to(trainer.device))
    mixing = draw_mix(recipe.augment, recipe.seed, step, slot, images.shape[-2], images.shape[-1])
    targets = None
    if mixing is not None or recipe.loss == "bce":
        targets = soft_targets(labels, trainer.classes, recipe.label_smoothing)
    if mixing is not None and targets is not None:
        images, targets = mix(images, targets, mixing)
    if trainer.random_layers:
        torch.manual_seed(mix_numbers(recipe.seed, step, slot, _DROP))
    logits = trainer.network(images).float()
    if targets is None:
        loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    else:
        loss = _soft_loss(logits, targets, recipe)
    right = logits.argmax(1) == (labels if mixing is None or targets is None else targets.argmax(1))
    trainer.state.window.add(step, loss, right.sum(), len(labels), len(batch.broken))
    return loss, len(labels) / plan.samples_of_step(step)


def _soft_loss(logits: torch.Tensor, targets: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    if recipe.loss == "cross_entropy":
        return F.cross_entropy(logits, targets)
    if recipe.bce_target_threshold is not None:
        targets = (targets > recipe.bce_target_threshold).to(targets.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets)


def _input(images: torch.Tensor, recipe: Recipe, device: torch.device) -> torch.Tensor:
    """uint8 (N, 3, H, W) as it comes from the loader -> the network's normalised float input on the device."""
    images = images.to(device)
    if recipe.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return normalise(images, recipe.augment.mean, recipe.augment.std, torch.float32)


def _clip(trainer: Trainer, step: int) -> torch.Tensor | None:
    recipe, state = trainer.recipe, trainer.state
    measured = log_is_due(trainer.plan, step + 1)
    if recipe.grad_clip_norm or recipe.grad_clip_value or measured:
        state.scaler.unscale_(state.optimizer)
    norm = None
    if recipe.grad_clip_norm:
        norm = nn.utils.clip_grad_norm_(trainer.parameters, recipe.grad_clip_norm)
    elif measured:
        norm = nn.utils.get_total_norm([p.grad for p in trainer.parameters if p.grad is not None])
    if recipe.grad_clip_value:
        nn.utils.clip_grad_value_(trainer.parameters, recipe.grad_clip_value)
    return norm


class StatisticsOfStep:
    """Makes one update of BatchNorm's running statistics of a step's micro-batches, by the mean of theirs.

    So a step in two micro-batches on one device leaves what two devices leave that average their statistics.
    """

    def __init__(self, model: nn.Module) -> None:
        moving = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
        self.floats = [buffer for module in moving for buffer in running_statistics(module)]
        self.counts = [m.num_batches_tracked for m in moving if m.num_batches_tracked is not None]
        self.before = [buffer.clone() for buffer in self.floats]
        self.sums = [torch.zeros_like(buffer) for buffer in self.floats]
        self.micro_batches = 0

    @torch.no_grad()
    def begin(self) -> None:
        self.micro_batches = 0
        if self.floats:
            torch._foreach_copy_(self.before, self.floats)
            torch._foreach_zero_(self.sums)

    @torch.no_grad()
    def after_micro_batch(self, last: bool) -> None:
        if not self.floats:
            return
        self.micro_batches += 1
        torch._foreach_add_(self.sums, self.floats)
        if last:
            torch._foreach_div_(self.sums, self.micro_batches)
            torch._foreach_sub_(self.counts, self.micro_batches - 1)
        torch._foreach_copy_(self.floats, self.sums if last else self.before)


def log_is_due(plan: Plan, step: int) -> bool:
    return step % plan.recipe.log_every == 0 or plan.evaluates_after(step)


def log_window(trainer: Trainer, clock: _Clock, norm: torch.Tensor | None) -> None:
    """Write a line on the steps since the last one. Raises TrainingError where training has gone wrong."""
    plan, state = trainer.plan, trainer.state
    means = state.window.read()
    if means.bad_step >= 0:
        raise TrainingError(
            f"the loss is not finite since step {means.bad_step} (epoch {plan.epoch(means.bad_step):.2f}, "
            f"lr {plan.hyper(means.bad_step).lr:g}): a lower optimizer.lr, a warm-up or grad_clip_norm can help; "
            "the checkpoints from before it are kept"
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
    if norm is not None:
        row["grad_norm"] = norm.item()
    if means.broken:
        row["broken_images"] = means.broken
    if state.scaler.is_enabled():
        row |= {"skipped_steps": means.skipped, "loss_scale": state.scaler.get_scale()}
    trainer.hooks.log(row | clock.read())
    state.window.clear(epoch_ends=state.step % plan.steps_per_epoch == 0)


class _Clock:
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


def evaluation_is_due(trainer: Trainer) -> bool:
    return trainer.plan.evaluates_after(trainer.state.step) and trainer.state.evaluated < trainer.state.step


def evaluate_and_report(trainer: Trainer) -> bool:
    """Evaluate and hand the result to the hooks; False where a hook asked to stop before the end."""
    state, metric = trainer.state, trainer.recipe.eval.metric
    trainer.hooks.before_evaluation()
    average_running_statistics(state)
    result = evaluate(state.weights, trainer)
    if result is None:
        return False
    _check_unreadable(trainer, result["samples"])
    state.evaluated = state.step
    value = result[metric]
    best = state.best is None or (value < state.best if metric == "loss" else value > state.best)
    if best:
        state.best, state.best_step = value, state.step
    row = {"step": state.step, "epoch": trainer.plan.epoch(state.step)}
    trainer.hooks.log(row | {f"val/{name}": result[name] for name in ("loss", "top1", "top5", "samples")})
    trainer.hooks.after_evaluation(result, best)
    return True


def _check_unreadable(trainer: Trainer, evaluated: int) -> None:
    """Tell of validation images that could not be read. Raises TrainingError where they are too many."""
    missing = trainer.val_samples - evaluated
    if missing > trainer.recipe.data.max_broken * trainer.val_samples:
        raise TrainingError(
            f"{missing} of {trainer.val_samples} validation images could not be read, more than data.max_broken "
            f"{trainer.recipe.data.max_broken:g} allows:{trainer.examples_of_broken()}"
        )
    if missing and trainer.rank == 0:
        print(
            f"{missing} of {trainer.val_samples} validation images could not be read and count nowhere", file=sys.stderr
        )


@torch.no_grad()
def evaluate(network: nn.Module, trainer: Trainer) -> dict[str, Any] | None:
    """Loss, top1, top5 (percent), samples and the confusion matrix over all ranks; None where a hook asked to stop."""
    recipe, tally, keys = trainer.recipe, Tally(trainer.classes, trainer.device), trainer.validation_keys()
    network.eval()
    for turn in range(trainer.most_validation_batches()):
        if trainer.hooks.stop_now():
            return None
        batch = trainer.next_batch() if turn < len(keys) else None
        if batch is None or not len(batch.labels):
            continue
        assert batch.key == keys[turn], (batch.key, keys[turn])
        with trainer.accelerator.autocast():
            count_batch(tally, network, batch, recipe)
    trainer.state.model.train()
    return tally.read()


def count_batch(tally: Tally, network: nn.Module, batch: Batch, recipe: Recipe) -> None:
    """Evaluate a batch on the tally's device and count it there."""
    labels = batch.labels.to(tally.loss.device)
    logits = predict_logits(network, batch.images, recipe, tally.loss.device)
    tally.add(F.cross_entropy(logits, labels, reduction="sum"), logits, labels)


def predict_logits(network: nn.Module, images: torch.Tensor, recipe: Recipe, device: torch.device) -> torch.Tensor:
    """Logits float32 (N, classes) of uint8 images (N, 3, H, W); with `eval.flip` the mean of both mirror images."""
    images = _input(images, recipe, device)
    logits = network(images).float()
    if recipe.eval.flip:
        logits = (logits + network(images.flip(3)).float()) / 2
    return logits
