"""Schedules of the learning rate: for each ONE class, with its keys, its formula and the steps at which it turns.

What a step uses is a pure function of the step, the same on any number of devices and after any restart. A new schedule
is a class here and its name in `Schedule`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction as Exact
from typing import Annotated, Literal, NamedTuple

from pydantic import Discriminator, Field, field_validator

from recipes.schema.fields import Count, Fraction, Group, NonNegative, Positive

_MOST_TURNS = 8
"""Drops or restarts that are shown."""

Gamma = Annotated[float, Field(gt=0, le=1)]


class Hyper(NamedTuple):
    """What one optimizer step uses."""

    lr: float
    momentum: float | None
    """Momentum, or Adam's first beta, where the schedule cycles it; None: the optimizer's own stays."""


class Span(NamedTuple):
    """The run that a schedule spans."""

    steps_per_epoch: int
    total_steps: int
    """Optimizer steps of the whole run, not necessarily whole epochs."""
    lr: float
    """Peak learning rate, already scaled to the batch size."""

    @property
    def epochs(self) -> float:
        return self.total_steps / self.steps_per_epoch

    @property
    def last(self) -> int:
        return self.total_steps - 1


def hyper_at(schedule: Schedule, step: int, steps_per_epoch: int, total_steps: int, lr: float) -> Hyper:
    """The values that the optimizer step `step` uses: 0 <= step < total_steps. The other arguments: see `Span`."""
    assert 0 <= step < total_steps, f"step {step} of a run of {total_steps}"
    return schedule.at(step, Span(steps_per_epoch, total_steps, lr))


def _between(start: float, end: float, progress: float) -> float:
    return start + (end - start) * progress


def _exact(epochs: float) -> Exact:
    """The number that was written, which binary floating point may miss."""
    return Exact(str(epochs))


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))


class _Schedule(Group):
    """A linear warm-up, then what `share` says."""

    warmup_epochs: NonNegative = 0.0
    """Epochs in which the learning rate climbs linearly to lr."""
    warmup_start: Fraction = 0.01
    """Share of lr at which the warm-up starts."""
    update: Literal["step", "epoch"] = "step"
    """epoch: the learning rate stays the same within an epoch, as in torchvision's references."""

    def at(self, step: int, span: Span) -> Hyper:
        epoch, warmup = self._epoch(step, span), self.warmup_epochs
        if epoch < warmup:
            return Hyper(span.lr * _between(self.warmup_start, 1.0, float(epoch) / warmup), None)
        progress = (float(epoch) - warmup) / (span.epochs - warmup)
        return Hyper(span.lr * self.share(epoch, progress), None)

    def share(self, epoch: Exact, progress: float) -> float:
        """Share of the peak after the warm-up. progress: from 0 at its end to 1 at the end of the run."""
        raise NotImplementedError

    def turns(self, span: Span) -> Iterator[tuple[int, str]]:
        """The steps from which something is different, and what: for people."""
        warm = self._step(Exact(self.warmup_epochs), span)
        if 0 < warm <= span.last:
            yield warm, "end of warm-up"
        yield from self.later_turns(warm, span)

    def later_turns(self, warm: int, span: Span) -> Iterator[tuple[int, str]]:
        """Those after the warm-up, which ends at step `warm`."""
        yield from ()

    def _epoch(self, step: int, span: Span) -> Exact:
        """The epoch that the schedule sees at a step."""
        return Exact(step, span.steps_per_epoch) if self.update == "step" else Exact(step // span.steps_per_epoch)

    def _step(self, epoch: Exact, span: Span) -> int:
        """The first step at which the schedule sees an epoch or a later one."""
        return math.ceil((math.ceil(epoch) if self.update == "epoch" else epoch) * span.steps_per_epoch)


class ConstantSchedule(_Schedule):
    """The same learning rate throughout."""

    name: Literal["constant"]

    def share(self, epoch: Exact, progress: float) -> float:
        return 1.0


class StepSchedule(_Schedule):
    """Multiply by gamma every `every` epochs, counted from the start of the run (StepLR)."""

    name: Literal["step"]
    every: Positive = 30
    """Epochs from one drop to the next."""
    gamma: Gamma = 0.1
    """Factor of each drop."""

    @property
    def _every(self) -> Exact:
        # In binary floating point 0.3 // 0.1 is 2: the drop would come a step late.
        return _exact(self.every)

    def share(self, epoch: Exact, progress: float) -> float:
        return self.gamma ** (epoch // self._every)

    def later_turns(self, warm: int, span: Span) -> Iterator[tuple[int, str]]:
        count, step = self._epoch(span.last, span) // self._every, warm
        for _ in range(_MOST_TURNS):
            step = self._step((self._epoch(step, span) // self._every + 1) * self._every, span)
            if step > span.last:
                break
            yield step, f"drop {self._epoch(step, span) // self._every} of {count}"


class MultiStepSchedule(_Schedule):
    """Multiply by gamma at each of the milestones, counted from the start of the run (MultiStepLR)."""

    name: Literal["multistep"]
    milestones: Annotated[list[Positive], Field(min_length=1, max_length=100)]
    """Epochs at which it drops, ascending: as in [30, 60, 80]."""
    gamma: Gamma = 0.1
    """Factor of each drop."""

    @field_validator("milestones")
    @classmethod
    def _ascend(cls, value: list[float]) -> list[float]:
        if any(before >= after for before, after in itertools.pairwise(value)):
            raise ValueError(f"must ascend: give {sorted(set(value))}")
        return value

    def share(self, epoch: Exact, progress: float) -> float:
        return self.gamma ** sum(_exact(milestone) <= epoch for milestone in self.milestones)

    def later_turns(self, warm: int, span: Span) -> Iterator[tuple[int, str]]:
        for number, milestone in enumerate(self.milestones[:_MOST_TURNS], 1):
            if warm < (step := self._step(_exact(milestone), span)) <= span.last:
                yield step, f"drop {number} of {len(self.milestones)}"


class ExponentialSchedule(_Schedule):
    """Multiply by gamma every epoch after the warm-up (ExponentialLR), with update=step by equal factors a step."""

    name: Literal["exponential"]
    gamma: Gamma = 0.97
    """Factor of an epoch."""

    def share(self, epoch: Exact, progress: float) -> float:
        return self.gamma ** (float(epoch) - self.warmup_epochs)


class CosineSchedule(_Schedule):
    """Half a cosine from lr to `final` after the warm-up."""

    name: Literal["cosine"]
    final: Fraction = 0.0
    """Share of lr at the end."""

    def share(self, epoch: Exact, progress: float) -> float:
        return _cosine(1.0, self.final, progress)


class CosineRestartsSchedule(_Schedule):
    """Half a cosine from lr to `final`, again and again after the warm-up (Loshchilov & Hutter 2016, arXiv:1608.03983).

    A run ends within a period unless its epochs are the sum of some: with period=10 and multiplier=2 10, 30, 70 ...
    """

    name: Literal["cosine_restarts"]
    period: Positive = 10.0
    """Epochs until the first restart."""
    multiplier: Count = 1
    """Each period is so many times as long as the one before."""
    final: Fraction = 0.0
    """Share of lr at the end of a period."""

    def share(self, epoch: Exact, progress: float) -> float:
        _, since, length = self._place(epoch)
        return _cosine(1.0, self.final, float(since / length))

    def later_turns(self, warm: int, span: Span) -> Iterator[tuple[int, str]]:
        count, start, length = self._place(self._epoch(span.last, span))[0], self._warm, _exact(self.period)
        for number in range(1, min(count, _MOST_TURNS) + 1):
            start, length = start + length, length * self.multiplier
            yield self._step(start, span), f"restart {number} of {count}"

    @property
    def _warm(self) -> Exact:
        return _exact(self.warmup_epochs)

    def _place(self, epoch: Exact) -> tuple[int, Exact, Exact]:
        """Restarts until an epoch, the epochs since the last of them, and the length of that period."""
        since, length = max(epoch - self._warm, Exact(0)), _exact(self.period)
        if self.multiplier == 1:
            return int(since // length), since % length, length
        restarts = 0
        while since >= length:
            restarts, since, length = restarts + 1, since - length, length * self.multiplier
        return restarts, since, length


class PolySchedule(_Schedule):
    """Polynomial decay to `final` after the warm-up; power 1 is linear."""

    name: Literal["poly"]
    power: Positive = 2.0
    """Exponent."""
    final: Fraction = 0.0
    """Share of lr at the end."""

    def share(self, epoch: Exact, progress: float) -> float:
        return self.final + (1 - self.final) * (1 - progress) ** self.power


class TriangularSchedule(Group):
    """Linear from `start` up to lr at `peak_epoch`, then linear down to `final`."""

    name: Literal["triangular"]
    peak_epoch: NonNegative = 2
    """Epoch of the highest learning rate."""
    start: Fraction = 0.0001
    """Share of lr at step 0."""
    final: Fraction = 0.0
    """Share of lr at the end."""

    def at(self, step: int, span: Span) -> Hyper:
        epoch, peak = step / span.steps_per_epoch, self.peak_epoch
        if epoch < peak:
            share = _between(self.start, 1.0, epoch / peak)
        else:
            share = _between(1.0, self.final, (epoch - peak) / (span.epochs - peak))
        return Hyper(span.lr * share, None)

    def turns(self, span: Span) -> Iterator[tuple[int, str]]:
        """The step of the peak."""
        if 0 < (peak := math.ceil(self.peak_epoch * span.steps_per_epoch)) <= span.last:
            yield peak, "peak"


class OneCycleSchedule(Group):
    """torch's OneCycleLR over the whole run (Smith & Topin 2017, arXiv:1708.07120); lr is its max_lr."""

    name: Literal["onecycle"]
    pct_start: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the steps that climb."""
    anneal: Literal["cos", "linear"] = "cos"
    """Shape of both halves."""
    div_factor: Positive = 25.0
    """The run starts at lr / div_factor."""
    final_div_factor: Positive = 1e4
    """It ends at its start / final_div_factor."""
    cycle_momentum: bool = True
    """Let momentum (or Adam's first beta) fall while the learning rate climbs, and the other way round."""
    base_momentum: Fraction = 0.85
    """Lowest momentum."""
    max_momentum: Fraction = 0.95
    """Highest momentum."""

    def at(self, step: int, span: Span) -> Hyper:
        """Two phases; both ends of the run are values that a step uses."""
        anneal = _cosine if self.anneal == "cos" else _between
        first = span.lr / self.div_factor
        peak_step = self.pct_start * span.total_steps - 1
        if step < peak_step:
            progress = step / peak_step
            rates, momenta = (first, span.lr), (self.max_momentum, self.base_momentum)
        else:
            progress = (step - peak_step) / (span.total_steps - 1 - peak_step)
            rates, momenta = (span.lr, first / self.final_div_factor), (self.base_momentum, self.max_momentum)
        momentum = anneal(*momenta, progress) if self.cycle_momentum else None
        return Hyper(anneal(*rates, progress), momentum)

    def turns(self, span: Span) -> Iterator[tuple[int, str]]:
        """The step of the highest learning rate."""
        near = min(max(math.floor(self.pct_start * span.total_steps - 1), 0), span.last)
        yield max(near, min(near + 1, span.last), key=lambda step: self.at(step, span).lr), "peak"


Schedule = Annotated[
    ConstantSchedule
    | StepSchedule
    | MultiStepSchedule
    | ExponentialSchedule
    | CosineSchedule
    | CosineRestartsSchedule
    | PolySchedule
    | TriangularSchedule
    | OneCycleSchedule,
    Discriminator("name"),
]
