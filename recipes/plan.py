"""What follows from a recipe, the size of its data and the number of devices: computed here and nowhere else."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from recipes.schedules import Hyper, Span, hyper_at
from recipes.schema.data import Data
from recipes.schema.recipe import Recipe
from recipes.schema.training import Ema


@dataclass(frozen=True)
class Plan:
    """The arithmetic of a run: a step takes `batch_size` of an epoch's `samples` positions in `slots` micro-batches."""

    recipe: Recipe
    samples: int
    """Samples drawn in an epoch (after balancing), those of an unfilled last batch included."""
    world_size: int
    micro_batch: int
    """Images of one forward pass on one device: what BatchNorm normalises over."""
    steps_per_epoch: int
    total_steps: int
    lr: float
    """Peak learning rate at this batch size."""

    @property
    def batch_size(self) -> int:
        return self.recipe.batch_size

    @property
    def slots(self) -> int:
        """Micro-batches of a step over all devices together."""
        return self.batch_size // self.micro_batch

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step on one device."""
        return self.slots // self.world_size

    @property
    def end_step(self) -> int:
        """Step at which the run ends: that of the schedule, or `max_steps`."""
        return min(self.total_steps, self.recipe.max_steps or self.total_steps)

    @property
    def end_epoch(self) -> float:
        """Epochs completed when the run ends."""
        return self.recipe.epochs if self.end_step == self.total_steps else self.epoch(self.end_step)

    def slot(self, step: int, slot: int) -> tuple[int, int]:
        """First and last-plus-one position, within its epoch, of a micro-batch of a (global) step."""
        start = step % self.steps_per_epoch * self.batch_size
        size = min(self.batch_size, self.samples - start)
        return start + slot * size // self.slots, start + (slot + 1) * size // self.slots

    def samples_of_step(self, step: int) -> int:
        return min(self.batch_size, self.samples - step % self.steps_per_epoch * self.batch_size)

    def epoch(self, step: int) -> float:
        """Epochs completed after `step` steps."""
        return step / self.steps_per_epoch

    def samples_seen(self, step: int) -> int:
        """Samples consumed by the first `step` steps."""
        epochs, steps = divmod(step, self.steps_per_epoch)
        per_epoch = min(self.samples, self.steps_per_epoch * self.batch_size)
        return epochs * per_epoch + min(steps * self.batch_size, per_epoch)

    def hyper(self, step: int) -> Hyper:
        return hyper_at(self.recipe.schedule, step, self.steps_per_epoch, self.total_steps, self.lr)

    def turns(self) -> Iterator[tuple[int, str]]:
        """Steps at which the schedule turns, and what happens there."""
        return self.recipe.schedule.turns(Span(self.steps_per_epoch, self.total_steps, self.lr))

    def image_size(self, step: int) -> int:
        """Height and width in pixels of the training images of a step (it changes between epochs only)."""
        corners = self.recipe.augment.progressive
        if not corners:
            return self.recipe.augment.train_size
        epoch = step // self.steps_per_epoch
        after = next((i for i, corner in enumerate(corners) if corner.epoch > epoch), len(corners))
        low, high = corners[max(after - 1, 0)], corners[min(after, len(corners) - 1)]
        if low is high or epoch == low.epoch:
            return low.size
        size = low.size + (high.size - low.size) * (epoch - low.epoch) / (high.epoch - low.epoch)
        return round(size / 32) * 32

    def swa_after(self, step: int) -> Literal["copy", "average"] | None:
        """What the average of `swa` does once `step` steps are done: become a copy of the weights, take them in, or
        nothing. Until it begins a copy is enough where an evaluation may follow."""
        assert self.recipe.swa is not None
        start, every = self.recipe.swa.start_epoch, self.recipe.swa.every
        epochs, within = divmod(step, self.steps_per_epoch)
        if epochs < start:
            return "copy" if within == 0 or step == self.end_step else None
        due = step == self.end_step or (within == 0 and (epochs - start) % every == 0)
        return "average" if due else None

    def rechecks(self, step: int) -> bool:
        """Whether ranks compute a part of each other's gradients once more in the step made when `step` are done."""
        every = self.recipe.recheck
        return every is not None and self.world_size > 1 and (step + 1) % every == 0

    def evaluates_after(self, step: int) -> bool:
        """Whether an evaluation follows once `step` steps are done."""
        return step == self.end_step or (step > 0 and step % (self.steps_per_epoch * self.recipe.eval.every) == 0)


def make_plan(recipe: Recipe, samples: int, world_size: int, micro_batch: int | None = None) -> Plan:
    """Derive the plan.

    samples: training samples drawn in an epoch. micro_batch: the one to keep (that of a checkpoint); without one,
    max_batch_per_device=auto stands for the whole share of a device.
    Raises ValueError where the batch cannot be divided as asked.
    """
    micro_batch = micro_batch or _micro_batch(recipe, world_size)
    slots, rest = divmod(recipe.batch_size, micro_batch)
    if rest or slots % world_size:
        unit = micro_batch * world_size
        below = recipe.batch_size // unit * unit
        fitting = f"try batch_size={either(below, below + unit)}" if rest else f"use {_devices(*_divisors(slots))}"
        raise ValueError(
            f"batch_size {recipe.batch_size} does not divide over {_devices(world_size)} in micro-batches of "
            f"{micro_batch}, which the run keeps: {fitting}"
        )
    steps, tail = divmod(samples, recipe.batch_size)
    if recipe.data.last_batch == "keep" and tail >= 2 * slots:
        steps += 1
    if steps == 0:
        raise ValueError(f"batch_size {recipe.batch_size} is larger than the {samples} training samples of an epoch")
    scale = recipe.batch_size / recipe.optimizer.lr_for_batch_size if recipe.optimizer.lr_for_batch_size else 1.0
    return Plan(
        recipe=recipe,
        samples=samples,
        world_size=world_size,
        micro_batch=micro_batch,
        steps_per_epoch=steps,
        total_steps=max(1, round(recipe.epochs * steps)),
        lr=recipe.optimizer.lr * scale,
    )


def sizes_of(recipe: Recipe, world_sizes: Iterable[int], micro_batch: int | None = None) -> tuple[int, list[int]]:
    """On which of some numbers of devices the same steps are made of the same micro-batches; and that micro-batch.

    micro_batch: the one to keep; without one, that of the largest number that the batch divides over.
    max_batch_per_device=auto stands for the whole share of a device there, as the most that may then be found.
    Raises ValueError, with what would do, where the batch divides over none of them.
    """
    wanted, batch_size = sorted(set(world_sizes)), recipe.batch_size
    if micro_batch is None:
        found = (_largest_micro_batch(_limit(recipe), batch_size, count) for count in reversed(wanted))
        micro_batch = next(filter(None, found), None)
    fitting = [count for count in wanted if micro_batch and batch_size % (micro_batch * count) == 0]
    if not micro_batch or not fitting:
        make_plan(recipe, batch_size, wanted[0], micro_batch)
        raise AssertionError("a batch that divides over none is refused on the fewest")
    return micro_batch, fitting


def samples_known(data: Data) -> int | None:
    """Training samples of an epoch as far as the recipe tells; None: only the data itself does."""
    images = data.images_stated()
    if images is None or data.balance not in ("none", "shares") or (left := _left_to_train(data, images)) is None:
        return None
    return min(left, data.max_train or left)


def _left_to_train(data: Data, images: int) -> int | None:
    """Images that are not put aside; None: that goes by the sizes of classes, which only the data tells."""
    if data.test_fraction is not None or data.val_fraction is not None:
        classes = data.classes_stated()
        if not data.made_here or not classes or images % classes:
            return None
        each = images // classes
        for share in (data.test_fraction, data.val_fraction and data.val_fraction / (1 - (data.test_fraction or 0))):
            each -= min(max(round(share * each), 1), each - 1) if share else 0
        images = classes * each
    if data.fold_of is None:
        return images
    number, of = data.fold_of
    return images - len(range(number - 1, images, of))


def effective_decay(config: Ema, batch_size: int, epochs: float) -> float:
    """The share of the average that one update keeps.

    With `config.rescale`, as in torchvision's references, 1 - decay is multiplied by batch_size * every / epochs and is
    1 at most. batch_size: images of one optimizer step over all devices.
    """
    if not config.rescale:
        return config.decay
    return 1 - min(1.0, (1 - config.decay) * batch_size * config.every / epochs)


def _micro_batch(recipe: Recipe, world_size: int) -> int:
    batch_size, limit = recipe.batch_size, _limit(recipe)
    if size := _largest_micro_batch(limit, batch_size, world_size):
        return size
    below = batch_size // world_size * world_size
    fits = partial(_largest_micro_batch, limit, world_size=world_size)
    lower, higher = range(below, 0, -world_size), itertools.count(below + world_size, world_size)
    sizes = [next(filter(fits, lower), None), next(filter(fits, higher))]
    share, rest = divmod(batch_size, world_size)
    within, more = " (2 images or more each)", ""
    if not rest and share > 1:
        assert limit
        within = f" in micro-batches of {max(2, -(-limit // 2))} to {limit} images"
        larger = next(size for size in range(limit, share + 1) if share % size == 0)
        more = f", or max_batch_per_device={larger}"
    raise ValueError(
        f"batch_size {batch_size} does not divide over {_devices(world_size)}{within}: "
        f"try batch_size={either(*sizes)}{more}"
    )


def _limit(recipe: Recipe) -> int | None:
    """Images of a forward pass at most; None: all of a device's share."""
    return None if recipe.max_batch_per_device == "auto" else recipe.max_batch_per_device


def micro_batches(batch_size: int, world_size: int) -> list[int]:
    """The micro-batches that each device's share divides into, the whole share first, down to 2 images (for BatchNorm).

    Of a batch that divides over the devices.
    """
    return [size for size in reversed(_divisors(batch_size // world_size)) if size > 1]


def _largest_micro_batch(limit: int | None, batch_size: int, world_size: int) -> int | None:
    """The most images of one forward pass into which each device's share divides evenly.

    At least 2, for BatchNorm, and half of what is allowed: a far smaller one would train slower and differently.
    """
    share, rest = divmod(batch_size, world_size)
    most = min(limit or share, share)
    least = max(2, -(-most // 2))
    return None if rest else next((size for size in range(most, least - 1, -1) if share % size == 0), None)


def _devices(*counts: int) -> str:
    return f"{either(*counts)} device{'s' if counts[-1] > 1 else ''}"


def either(*numbers: int | None) -> str:
    """As in 1, 2 or 4; without those that are 0 or None."""
    *first, last = (str(number) for number in numbers if number)
    return f"{', '.join(first)} or {last}" if first else last


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
