"""`resnet find-lr`: the learning-rate range test (Smith 2015, arXiv:1506.01186) through the real training loop."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from recipes.plan import Plan, make_plan
from recipes.schedules import Hyper
from recipes.schema.recipe import Recipe
from resnet.build import (
    build_accelerator,
    build_class_weights,
    build_data,
    build_model_for,
    build_order,
    build_state,
    wrap,
)
from resnet.checkpoint.resume import Start, data_digest
from resnet.data.loader import workers_per_rank
from resnet.distill import load_teacher
from resnet.failure import out_of_memory
from resnet.feeding import beside_network, check_input, open_batches
from resnet.loop import fit
from resnet.micro_batch import fitted
from resnet.pretrained import shaped_as_weights
from resnet.trainer import Trainer, TrainingError

LEAST_STEPS = 20
DIVERGED = 4.0
"""How many times the least loss so far, the mean of a few steps, ends the test."""
_FEW = 5
"""Steps whose mean loss is looked at to see whether it diverges."""


class Found(NamedTuple):
    """What a range test saw. Learning rates are values of `optimizer.lr`, as the recipe states them."""

    lrs: list[float]
    losses: list[float]
    """Of the training steps, each at its rate."""
    smoothed: list[float]
    """The same, each averaged with its neighbours."""
    diverged: bool
    """Whether it ended before its last rate, as the loss rose."""
    steepest: float | None
    """Where the smoothed loss falls fastest; None: nowhere."""
    tenth: float | None
    """A tenth of the rate at which it is least; None: it does not fall."""


def find_lr(
    recipe: Recipe,
    first: float = 1e-5,
    last: float = 10.0,
    steps: int = 100,
    tell: Callable[[str], None] = lambda _: None,
) -> Found:
    """Train some steps of a recipe at rates that grow evenly in their logarithm, until the loss diverges.

    first, last: values of optimizer.lr. Input, precision, clipping, accumulation and the first weights are the
    training's; averages of the weights are left out, and nothing is written. Raises ValueError as the start of a run
    does, and where the range or the number of steps is of no use.
    """
    _check_range(first, last, steps)
    accelerator = build_accelerator(recipe)
    if accelerator.num_processes > 1:
        raise ValueError("find-lr runs on one device: start it without a launcher")
    recipe = recipe.model_copy(update={"ema": None, "swa": None, "log_every": 1, "profile": None, "compile": False})
    train, val = build_data(recipe)
    order = build_order(recipe, train)
    recipe, _ = shaped_as_weights(recipe)
    memory = check_input(recipe, train, val, accelerator)
    with tempfile.TemporaryDirectory() as nowhere:
        teacher = load_teacher(recipe, train.classes, Start(Path(nowhere), data_digest(train)), accelerator)
    beside = beside_network(teacher, build_class_weights(recipe, train, order), accelerator)
    plan, fits = fitted(make_plan(recipe, len(order), 1), order, train, val, accelerator, beside)
    if fits:
        tell(fits)
    plan = _RangePlan(**vars(plan), first=first, last=last, steps=steps)
    model, _ = build_model_for(recipe, len(train.classes), train.classes)
    state = build_state(recipe, plan, model, accelerator)
    network = wrap(recipe, plan, state.model, accelerator, 0)
    watch = _Watch()
    trainer = Trainer(plan, accelerator, network, state, len(train.classes), len(val), watch, **beside)
    loaders = open_batches(trainer, train, val, order, memory, workers_per_rank(recipe.data.num_workers), tell)
    try:
        fit(trainer)
    except TrainingError as error:
        if "finite" not in str(error):
            raise ValueError(str(error)) from error
        watch.diverged = True
    except torch.cuda.OutOfMemoryError as error:
        raise ValueError(out_of_memory(error, plan.micro_batch)) from error
    finally:
        # Its iterator holds workers, whose end by other hands it would complain of.
        trainer.batches = iter(())
        for loader in loaders:
            loader.end()
    scale = plan.lr / recipe.optimizer.lr
    return judged([lr / scale for lr in watch.lrs], watch.losses, watch.diverged)


def judged(lrs: Sequence[float], losses: Sequence[float], diverged: bool) -> Found:
    """What the losses of steps suggest, whose rates grow evenly in their logarithm."""
    smoothed = _smooth(np.array(losses, dtype=float), max(1, len(losses) // 16))
    steepest = tenth = None
    if len(losses) > _FEW and (least := int(smoothed.argmin())) > 1:
        slopes = np.gradient(smoothed)[:least]
        steepest, tenth = lrs[int(slopes.argmin())], lrs[least] / 10
    return Found([*lrs], [*losses], smoothed.tolist(), diverged, steepest, tenth)


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Twice the centred mean over 2 * width + 1 values, fewer at the ends: it lags behind nothing."""
    window = np.ones(2 * width + 1)
    for _ in range(2 if len(values) > len(window) else 0):
        values = np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")
    return values


def _check_range(first: float, last: float, steps: int) -> None:
    if not 0 < first < last < math.inf:
        raise ValueError(f"--from {first:g} --to {last:g}: give two learning rates above 0, the smaller one first")
    if steps < LEAST_STEPS:
        raise ValueError(f"--steps {steps}: give {LEAST_STEPS} or more, or noise would decide")


@dataclass(frozen=True)
class _RangePlan(Plan):
    """A plan whose learning rate climbs from `first` to `last` in `steps`, without evaluations."""

    first: float
    last: float
    steps: int

    @property
    def end_step(self) -> int:
        return self.steps

    def hyper(self, step: int) -> Hyper:
        share = step / (self.steps - 1)
        return Hyper(self.first * (self.last / self.first) ** share * self.lr / self.recipe.optimizer.lr, None)

    def evaluates_after(self, step: int) -> bool:
        return False


class _Watch:
    """`trainer.Hooks` that keep the loss of each step, and end the test where it diverges."""

    def __init__(self) -> None:
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.diverged = False

    def log(self, row: dict[str, Any]) -> None:
        self.lrs.append(row["lr"])
        self.losses.append(row["train/loss"])

    def after_step(self) -> bool:
        if len(self.losses) >= _FEW:
            means = np.convolve(self.losses, np.ones(_FEW) / _FEW, "valid")
            self.diverged = bool(means[-1] > DIVERGED * means.min())
        return self.diverged

    def tell(self, line: str) -> None: ...

    def before_evaluation(self) -> None: ...

    def after_evaluation(self, result: dict[str, Any], best: bool) -> None: ...

    def stop_now(self) -> bool:
        return False
