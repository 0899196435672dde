"""Micro-batches: what says everything about one, and what makes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from recipes.plan import Plan
from recipes.schema.augment import Augment
from resnet.data.decode import BrokenImage, decode
from resnet.data.draws import Draw, Drawn, drawing
from resnet.data.on_device import draw_erasing
from resnet.data.operations import Operations, apply_to_one
from resnet.data.order import Order, mix
from resnet.data.sources.registry import Source
from resnet.data.transforms import Crop, eval_transform, train_crop

_AUGMENT = 1


_MOST_BROKEN_IN_A_ROW = 100


class Key(NamedTuple):
    """A micro-batch: positions [start, stop) of an epoch's order, or of the validation images if epoch is None."""

    epoch: int | None
    start: int
    stop: int
    size: int
    """Height and width of its images in pixels."""


class Batch(NamedTuple):
    key: Key
    images: torch.Tensor
    """uint8 (N, 3, H, W), in NHWC order in memory; of a `cache`, before it has looked them up, int64 (N, DRAWN)."""
    labels: torch.Tensor
    """int64 (N,)."""
    erased: torch.Tensor | None
    """int64 (N, 4): top, left, height and width of the rectangle that random erasing blanks; height 0 for none."""
    broken: list[str]
    """Images that could not be read, each with the reason; others stand in their place (in training)."""
    missing: tuple[int, ...] = ()
    """Indices of the validation images of the key that are left out, as they could not be read."""
    operations: Operations | None = None
    """Rotation, colours and policy that are still to be applied to the images; None: there are none."""

    def indices(self, device: torch.device) -> torch.Tensor:
        """int64 (N,): which validation images the batch holds."""
        if not self.missing:
            return torch.arange(self.key.start, self.key.stop, device=device)
        whole = sorted({*range(self.key.start, self.key.stop)} - {*self.missing})
        return torch.tensor(whole, dtype=torch.int64).to(device, non_blocking=True)


class MicroBatches(Dataset):
    """Makes the batch of a key: read, decode, draw, crop; and rotation, colours and policy, if not on the device."""

    def __init__(
        self, train: Source, val: Source, order: Order, augment: Augment, operations_on_device: bool = False
    ) -> None:
        self.train, self.val, self.order, self.augment = train, val, order, augment
        self._operations_on_device = operations_on_device
        self._eval_transform = eval_transform(augment)
        self._by_size: dict[int, tuple[Draw, Crop]] = {}

    def __getitem__(self, key: Key) -> Batch:
        return self._validation(key) if key.epoch is None else self._training(key, key.epoch)

    def _training(self, key: Key, epoch: int) -> Batch:
        draw, crop = self._of_size(key.size)
        order, broken, drawn, erased = self.order.epoch(epoch), [], [], []
        seeds = self._seeds(key, epoch)
        images = _memory(key.stop - key.start, key.size)
        labels = torch.empty(key.stop - key.start, dtype=torch.int64)
        for row, position in enumerate(range(key.start, key.stop)):
            image, index = self._readable(order, position, broken)
            torch.default_generator.manual_seed(seeds[row])
            found = draw(*image.shape[-2:])
            images[row] = crop(image, found)
            drawn.append(found)
            labels[row] = int(self.train.labels[index])
            if self.augment.random_erasing:
                erased.append(draw_erasing(self.augment.random_erasing, key.size))
        return self._finished(key, images, labels, drawn, erased, broken)

    def _of_size(self, size: int) -> tuple[Draw, Crop]:
        if size not in self._by_size:
            self._by_size[size] = drawing(self.augment, size), train_crop(self.augment, size)
        return self._by_size[size]

    def _seeds(self, key: Key, epoch: int) -> list[int]:
        """Of what is drawn for each image."""
        return mix(self.order.seed, epoch, np.arange(key.start, key.stop, dtype=np.uint64), _AUGMENT).tolist()

    def _finished(
        self,
        key: Key,
        images: torch.Tensor,
        labels: torch.Tensor,
        drawn: list[Drawn],
        erased: list[tuple[int, int, int, int]],
        broken: list[str],
    ) -> Batch:
        """The batch of images that have been cropped and flipped."""
        operations = [each.operations for each in drawn]
        later = Operations.of(operations) if self._operations_on_device and any(operations) else None
        for row, found in enumerate(operations):
            if found and later is None:
                images[row] = apply_to_one(images[row], found)
        return Batch(key, images, labels, torch.tensor(erased) if erased else None, broken, (), later)

    def _readable(self, order, position: int, broken: list[str]) -> tuple[torch.Tensor, int]:
        """The image at a position; in place of a broken one, the next of the same order."""
        for ahead in range(_MOST_BROKEN_IN_A_ROW):
            index = int(order[(position + ahead) % len(order)])
            image = read_image(self.train, index, broken)
            if image is not None:
                return image, index
        raise BrokenImage(f"{_MOST_BROKEN_IN_A_ROW} images in a row cannot be read; the last is {broken[-1]}")

    def _validation(self, key: Key) -> Batch:
        broken: list[str] = []
        found = [(index, read_image(self.val, index, broken)) for index in range(key.start, key.stop)]
        whole = [(index, image) for index, image in found if image is not None]
        images, labels = _memory(len(whole), key.size), torch.empty(len(whole), dtype=torch.int64)
        for row, (index, image) in enumerate(whole):
            images[row], labels[row] = self._eval_transform(image), int(self.val.labels[index])
        missing = tuple(index for index, image in found if image is None)
        return Batch(key, images, labels, None, broken, missing)


def _memory(images: int, size: int) -> torch.Tensor:
    """A pixel's channels side by side: as decoders give them and GPUs like them."""
    return torch.empty((images, 3, size, size), dtype=torch.uint8, memory_format=torch.channels_last)


def read_image(source: Source, index: int, broken: list[str]) -> torch.Tensor | None:
    """An image uint8 (3, H, W); None, and the reason added to `broken`, where it cannot be read."""
    try:
        data = source.read(index)
        return decode(data) if isinstance(data, bytes) else data
    except (BrokenImage, OSError) as error:
        broken.append(f"{source.describe(index)}: {error}")
        return None


def training_keys(plan: Plan, rank: int, step: int) -> Iterator[Key]:
    """The micro-batches of one rank in one step: its contiguous share of the step's positions."""
    first = rank * plan.accumulation
    for slot in range(first, first + plan.accumulation):
        yield Key(step // plan.steps_per_epoch, *plan.slot(step, slot), plan.image_size(step))


def validation_keys(samples: int, batch_size: int, world_size: int, rank: int, size: int) -> Iterator[Key]:
    """Batches of the validation images for one rank: over all ranks each image once."""
    for start in range(rank * batch_size, samples, world_size * batch_size):
        yield Key(None, start, min(start + batch_size, samples), size)
