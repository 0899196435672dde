"""The training loop: fit and train_step. Nothing in a step makes the host wait for the device."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from recipes.unfreezing import what_trains
from resnet.adaptive_clipping import clip_adaptively
from resnet.data.batches import Batch
from resnet.data.bijection import mix as mix_numbers
from resnet.evaluation import evaluate_and_report
from resnet.log_window import Clock, log_is_due, log_window
from resnet.losses import loss_of_step
from resnet.optim import set_hyper
from resnet.plugins import check_logits
from resnet.recheck import DROP, recheck
from resnet.trainer import Trainer
from resnet.training_input import training_input


def fit(trainer: Trainer) -> str:
    """Train from the state's step to the plan's end, or until it stops early.

    Returns "finished", or "stopped" where a hook asked for it.
    Raises TrainingError where the loss is not finite or too many images are broken.
    """
    plan, state, hooks = trainer.plan, trainer.state, trainer.hooks
    if not trainer.prepare():
        return "stopped"
    if trainer.evaluation_is_due and not evaluate_and_report(trainer):
        return "stopped"
    clock = Clock(trainer)
    while state.step < plan.end_step and trainer.stopped_early is None:
        norm = train_step(trainer)
        state.step += 1
        if state.callbacks:
            state.callbacks.after_step(state.step, state.model)
        if log_is_due(plan, state.step):
            log_window(trainer, clock, norm)
        if hooks.after_step():
            return "stopped"
        if trainer.evaluation_is_due:
            if not evaluate_and_report(trainer):
                return "stopped"
            clock.restart()
    return "finished"


def train_step(trainer: Trainer) -> torch.Tensor | None:
    """Make one optimizer step; returns the gradient's L2 norm before clipping where it is known."""
    plan, state, step = trainer.plan, trainer.state, trainer.state.step
    set_hyper(state.optimizer, plan.hyper(step))
    if trainer.recipe.model.unfreeze and step % plan.steps_per_epoch == 0:
        trainer.set_training_mode()
        if begins := trainer.recipe.model.unfreeze.get(step // plan.steps_per_epoch):
            trainer.hooks.tell(f"epoch {step // plan.steps_per_epoch}: {what_trains(begins)} trains from here on")
    if trainer.statistics:
        trainer.statistics.begin()
    for turn in range(plan.accumulation):
        last = turn == plan.accumulation - 1
        with contextlib.nullcontext() if last else trainer.accelerator.no_sync(trainer.network):
            batch = trainer.next_batch()
            if trainer.times:
                trainer.times.begin()
            loss, share = _forward(trainer, batch, turn)
            # The gradient of a step is the mean over its samples, and DDP averages over ranks.
            weight = share * plan.world_size
            state.scaler.scale(loss if weight == 1 else loss * weight).backward()
            if trainer.times:
                trainer.times.end()
        if trainer.statistics:
            trainer.statistics.after_micro_batch(last)
        if last and plan.rechecks(step):
            recheck(trainer, batch)
    for parameter in trainer.frozen_parameters:
        parameter.grad = None
    norm = _clip(trainer, step)
    state.scaler.step(state.optimizer)
    if state.scaler.is_enabled():
        state.window.add_skipped(state.scaler, state.optimizer)
        state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    _average(trainer)
    return norm


def _forward(trainer: Trainer, batch: Batch, turn: int) -> tuple[torch.Tensor, float]:
    """Mean loss of a micro-batch, and its share of the step's samples; counted into the window."""
    plan, recipe, step = trainer.plan, trainer.recipe, trainer.state.step
    slot = trainer.rank * plan.accumulation + turn
    assert (batch.key.epoch, *batch.key[1:3]) == (step // plan.steps_per_epoch, *plan.slot(step, slot)), batch.key
    given = training_input(batch, recipe, step, slot, trainer.classes, trainer.device, trainer.input_dtype)
    # First, while nothing is held for the backward pass. It draws no random numbers.
    taught = None if trainer.teacher is None else trainer.teacher(given.images)
    if trainer.random_layers:
        torch.manual_seed(mix_numbers(recipe.seed, step, slot, DROP))
    output = trainer.network(given.images)
    if trainer.unchecked is not None:
        check_logits(trainer.unchecked, output, len(given.images), trainer.classes)
        trainer.unchecked = None
    logits = output.float()
    loss = loss_of_step(trainer, logits, given, taught)
    right = given.right(logits).sum()
    trainer.state.window.add(step, loss, right, given.checksum, len(batch.labels), len(batch.broken))
    return loss, len(batch.labels) / plan.samples_of_step(step)


def _average(trainer: Trainer) -> None:
    """Take the step's weights into the average, where it is due."""
    plan, state, recipe, step = trainer.plan, trainer.state, trainer.recipe, trainer.state.step
    if state.ema and recipe.ema:
        state.ema.update(state.model, step, copy=plan.epoch(step) < recipe.ema.start_epoch)
    elif state.ema and (due := plan.swa_after(step + 1)):
        state.ema.update(state.model, step, copy=due == "copy")


def _clip(trainer: Trainer, step: int) -> torch.Tensor | None:
    recipe, state = trainer.recipe, trainer.state
    measured = log_is_due(trainer.plan, step + 1)
    if recipe.grad_clip_norm or recipe.grad_clip_value or recipe.grad_clip_adaptive or measured:
        state.scaler.unscale_(state.optimizer)
    norm = None
    if recipe.grad_clip_norm:
        norm = nn.utils.clip_grad_norm_(trainer.parameters, recipe.grad_clip_norm)
    elif measured:
        norm = nn.utils.get_total_norm([p.grad for p in trainer.parameters if p.grad is not None])
    if recipe.grad_clip_value:
        nn.utils.clip_grad_value_(trainer.parameters, recipe.grad_clip_value)
    if recipe.grad_clip_adaptive:
        clip_adaptively(trainer.backbone, recipe.grad_clip_adaptive)
    return norm
