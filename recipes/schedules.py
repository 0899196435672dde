"""Learning rate and momentum as pure functions of the optimizer step."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

from recipes.schema.optimizer import (
    ConstantSchedule,
    CosineSchedule,
    OneCycleSchedule,
    PolySchedule,
    Schedule,
    StepSchedule,
    TriangularSchedule,
)


class Hyper(NamedTuple):
    """What one optimizer step uses."""

    lr: float
    momentum: float | None
    """Momentum, or Adam's first beta, where the schedule cycles it; None: the optimizer's own stays."""


def hyper_at(schedule: Schedule, step: int, steps_per_epoch: int, total_steps: int, lr: float) -> Hyper:
    """The values that the optimizer step `step` uses: 0 <= step < total_steps.

    total_steps: optimizer steps of the whole run, not necessarily whole epochs.
    lr: peak learning rate of the run, already scaled to its batch size.
    """
    assert 0 <= step < total_steps, f"step {step} of a run of {total_steps}"
    if isinstance(schedule, OneCycleSchedule):
        return _one_cycle(schedule, step, total_steps, lr)
    epochs = total_steps / steps_per_epoch
    if isinstance(schedule, TriangularSchedule):
        return Hyper(lr * _triangular(schedule, step / steps_per_epoch, epochs), None)

    epoch = Fraction(step, steps_per_epoch) if schedule.update == "step" else Fraction(step // steps_per_epoch)
    warmup = schedule.warmup_epochs
    if epoch < warmup:
        return Hyper(lr * _between(schedule.warmup_start, 1.0, float(epoch) / warmup), None)
    progress = (float(epoch) - warmup) / (epochs - warmup)
    match schedule:
        case ConstantSchedule():
            share = 1.0
        case StepSchedule():
            share = _steps(schedule, epoch)
        case CosineSchedule():
            share = _cosine(1.0, schedule.final, progress)
        case PolySchedule():
            share = schedule.final + (1 - schedule.final) * (1 - progress) ** schedule.power
    return Hyper(lr * share, None)


def _between(start: float, end: float, progress: float) -> float:
    return start + (end - start) * progress


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))


def _steps(schedule: StepSchedule, epoch: Fraction) -> float:
    # In binary floating point 0.3 // 0.1 is 2: the drop would come a step late.
    return schedule.gamma ** (epoch // Fraction(str(schedule.every)))


def _triangular(schedule: TriangularSchedule, epoch: float, epochs: float) -> float:
    peak = schedule.peak_epoch
    if epoch < peak:
        return _between(schedule.start, 1.0, epoch / peak)
    return _between(1.0, schedule.final, (epoch - peak) / (epochs - peak))


def _one_cycle(schedule: OneCycleSchedule, step: int, total_steps: int, lr: float) -> Hyper:
    """torch.optim.lr_scheduler.OneCycleLR with two phases; both ends of the run are values that a step uses."""
    anneal = _cosine if schedule.anneal == "cos" else _between
    first = lr / schedule.div_factor
    peak_step = schedule.pct_start * total_steps - 1
    if step < peak_step:
        progress = step / peak_step
        rates, momenta = (first, lr), (schedule.max_momentum, schedule.base_momentum)
    else:
        progress = (step - peak_step) / (total_steps - 1 - peak_step)
        rates, momenta = (lr, first / schedule.final_div_factor), (schedule.base_momentum, schedule.max_momentum)
    momentum = anneal(*momenta, progress) if schedule.cycle_momentum else None
    return Hyper(anneal(*rates, progress), momentum)
