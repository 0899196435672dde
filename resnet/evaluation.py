"""Evaluating while a run trains: every validation image once, whatever the number of ranks."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from recipes.metric import is_better
from resnet.answers import Answers
from resnet.batchnorm import average_running_statistics
from resnet.data.batches import Batch
from resnet.early_stopping import count_evaluation
from resnet.inference import count_batch
from resnet.tally import Tally
from resnet.trainer import Trainer, TrainingError


def evaluate_and_report(trainer: Trainer) -> bool:
    """Evaluate and hand the result to the hooks; False where a hook asked to stop before the end."""
    state, metric = trainer.state, trainer.recipe.eval.metric
    trainer.hooks.before_evaluation()
    average_running_statistics(state)
    result = evaluate(state.weights, trainer, trainer.val_samples, trainer.batches)
    if result is None:
        return False
    check_unreadable(trainer, result["samples"], trainer.val_samples, "validation")
    state.evaluated = state.step
    value = result[metric]
    if math.isnan(value) and not (state.best is not None and math.isnan(state.best)) and trainer.rank == 0:
        told = "which is never the best: where all evaluations do, the last weights are taken"
        print(f"eval.metric={metric} gives nan, {told}", file=sys.stderr)
    best = is_better(metric, value, state.best)
    if best:
        state.best, state.best_step = value, state.step
    figures = ("loss", "top1", "top5", "samples", *trainer.recipe.plugins.metrics)
    row = {"step": state.step, "epoch": trainer.plan.epoch(state.step)}
    trainer.hooks.log(row | {f"val/{name}": result[name] for name in figures})
    trainer.hooks.after_evaluation(result, best)
    if state.callbacks:
        state.callbacks.after_evaluation(state.step, {name: result[name] for name in figures})
    if state.step < trainer.plan.end_step:
        trainer.stopped_early = count_evaluation(state, trainer.recipe, result)
    return True


def check_unreadable(trainer: Trainer, evaluated: int, samples: int, what: str) -> None:
    """Tell of images that could not be read. Raises TrainingError where they are too many.

    what: validation or test.
    """
    missing = samples - evaluated
    told = f"{missing} of {samples} {what} images could not be read"
    allowed = trainer.recipe.data.max_broken
    if missing > allowed * samples:
        raise TrainingError(f"{told}, more than data.max_broken {allowed:g} allows:{trainer.examples_of_broken()}")
    if missing and trainer.rank == 0:
        print(f"{told} and count nowhere", file=sys.stderr)


@torch.no_grad()
def evaluate(network: nn.Module, trainer: Trainer, samples: int, batches: Iterator[Batch]) -> dict[str, Any] | None:
    """What `Tally.read` gives, over all ranks; None where a hook asked to stop.

    samples: images over all ranks. batches: those of this rank.
    """
    recipe, tally, keys = trainer.recipe, Tally(trainer.classes, trainer.device), trainer.validation_keys(samples)
    answers = Answers(recipe.plugins.metrics) if recipe.plugins.metrics else None
    network.eval()
    for turn in range(trainer.most_validation_batches(samples)):
        if trainer.hooks.stop_now():
            return None
        batch = trainer.next_batch(batches) if turn < len(keys) else None
        if batch is None or not len(batch.labels):
            continue
        assert batch.key == keys[turn], (batch.key, keys[turn])
        with trainer.accelerator.autocast():
            count_batch(tally, network, batch, recipe, answers)
    trainer.set_training_mode()
    return tally.read() | (answers.read() if answers else {})
