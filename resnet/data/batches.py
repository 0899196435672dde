"""Micro-batches: what says everything about one, and what makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

from recipes.plan import Plan
from recipes.schema.augment import Augment
from resnet.data.arrays import BrokenImage
from resnet.data.bijection import mix
from resnet.data.decode import decode
from resnet.data.draws import Draw, Drawn, drawing
from resnet.data.on_device import draw_erasing
from resnet.data.operations import Operations, apply_to_all
from resnet.data.order import Order
from resnet.data.sources.source import Source
from resnet.data.transforms import Crop, Transform, eval_transform, train_crop

T = TypeVar("T")

_AUGMENT = 1


_MOST_BROKEN_IN_A_ROW = 100


class Key(NamedTuple):
    """A micro-batch: positions [start, stop) of an epoch's order, or of the validation images if epoch is None."""

    epoch: int | None
    start: int
    stop: int
    size: int
    """Height and width of its images in pixels."""


class Encoded(NamedTuple):
    """Files that are to be decoded on the device."""

    files: torch.Tensor
    """uint8 (bytes,): one after the other."""
    table: torch.Tensor
    """int64 (files, 10): row in the batch, start and end among the bytes, pixels of the whole image; top, left, height
    and width of its crop, whether to mirror and to flip it."""


class Batch(NamedTuple):
    key: Key
    images: torch.Tensor
    """uint8 (N, C, H, W), in NHWC order in memory; of a `cache`, before it has looked them up, int64 (N, DRAWN)."""
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
    encoded: Encoded | None = None
    """Images that are not among `images` yet; None: there are none."""
    targets: torch.Tensor | None = None
    """float32 (N, classes), where images have several labels; see `resnet.data.targets`."""

    def to(self, device: torch.device) -> Batch:
        """With images, labels and boxes on a device; a copy to a GPU is not waited for."""
        return self._replace(
            images=self.images.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            erased=None if self.erased is None else self.erased.to(device, non_blocking=True),
        )

    def indices(self, device: torch.device) -> torch.Tensor:
        """int64 (N,): which validation images the batch holds."""
        if not self.missing:
            return torch.arange(self.key.start, self.key.stop, device=device)
        whole = sorted({*range(self.key.start, self.key.stop)} - {*self.missing})
        return torch.tensor(whole, dtype=torch.int64).to(device, non_blocking=True)


class Prepared(Dataset):
    """What workers make ahead of time, by key."""

    def finish(self, batch: Any, device: torch.device) -> Any:
        """What is still to be done where the batch is used, on the device that it is on."""
        return batch


class MicroBatches(Prepared):
    """Makes the batch of a key: read, decode, draw, crop; and rotation, colours and policy, if not on the device."""

    def __init__(
        self, train: Source, val: Source, order: Order, augment: Augment, operations_on_device: bool = False
    ) -> None:
        self.train, self.val, self.order, self.augment = train, val, order, augment
        self._operations_on_device = operations_on_device
        # Made by each worker: functions cannot be sent to one that is not forked.
        self._eval_transform: Transform | None = None
        self._by_size: dict[int, tuple[Draw, Crop]] = {}

    def __getitem__(self, key: Key) -> Batch:
        return self._validation(key) if key.epoch is None else self._training(key, key.epoch)

    def _memory(self, images: int, size: int) -> torch.Tensor:
        """A pixel's channels side by side: as decoders give them and GPUs like them."""
        return torch.empty(
            (images, self.augment.channels, size, size), dtype=torch.uint8, memory_format=torch.channels_last
        )

    def _training(self, key: Key, epoch: int) -> Batch:
        index = self.order.at(epoch, np.arange(key.start, key.stop)).tolist()
        broken, drawn, erased = [], [], []
        images = self._memory(key.stop - key.start, key.size)
        labels = torch.empty(key.stop - key.start, dtype=torch.int64)
        for row, seed in enumerate(self._seeds(key, epoch)):
            make = partial(self._training_image, key.size, seed)
            images[row], found, labels[row] = self._first_whole(key, row, index[row], broken, make)
            drawn.append(found)
            if self.augment.random_erasing:
                erased.append(draw_erasing(self.augment.random_erasing, key.size))
        return self._finished(key, images, labels, drawn, erased, broken)

    def _seeds(self, key: Key, epoch: int) -> list[int]:
        """Of what is drawn for each image."""
        return mix(self.order.seed, epoch, np.arange(key.start, key.stop, dtype=np.uint64), _AUGMENT).tolist()

    def _training_image(self, size: int, seed: int, index: int) -> tuple[torch.Tensor, Drawn, int]:
        """An image cropped as it was drawn, and its label."""
        draw, _ = self._draw_and_crop(size)
        image = self._read(self.train, index)
        torch.default_generator.manual_seed(seed)
        drawn = draw(*self._size(image))
        return self._crop(size, image, drawn), drawn, int(self.train.labels[index])

    def _first_whole(self, key: Key, row: int, index: int, broken: list[str], make: Callable[[int], T]) -> T:
        """What is made of the image of a row; in place of a broken one, of the next of the same order."""
        assert key.epoch is not None
        for ahead in range(1, _MOST_BROKEN_IN_A_ROW + 1):
            try:
                return make(index)
            except (BrokenImage, OSError) as error:
                broken.append(f"{self.train.describe(index)}: {error}")
            [index] = self.order.at(key.epoch, np.array([(key.start + row + ahead) % len(self.order)])).tolist()
        raise BrokenImage(f"{_MOST_BROKEN_IN_A_ROW} images in a row cannot be read; the last is {broken[-1]}")

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
        operations, later = [each.operations for each in drawn], None
        if any(operations) and self._operations_on_device:
            later = Operations.of(operations)
        elif any(operations):
            images = apply_to_all(images, operations)
        return Batch(key, images, labels, torch.tensor(erased) if erased else None, broken, (), later)

    def _draw_and_crop(self, size: int) -> tuple[Draw, Crop]:
        if size not in self._by_size:
            self._by_size[size] = drawing(self.augment, size), train_crop(self.augment, size)
        return self._by_size[size]

    def _read(self, source: Source, index: int) -> torch.Tensor:
        return read_image(source, index)

    def _size(self, image: torch.Tensor) -> tuple[int, int]:
        """Height and width."""
        return image.shape[-2], image.shape[-1]

    def _crop(self, size: int, image: torch.Tensor, drawn: Drawn) -> torch.Tensor:
        _, crop = self._draw_and_crop(size)
        return crop(image, drawn)

    def _validation(self, key: Key) -> Batch:
        images, broken, missing = self._memory(key.stop - key.start, key.size), [], []
        for index in range(key.start, key.stop):
            try:
                images[index - key.start - len(missing)] = self._prepared(self._read(self.val, index))
            except (BrokenImage, OSError) as error:
                broken.append(f"{self.val.describe(index)}: {error}")
                missing.append(index)
        labels = np.delete(self.val.labels[key.start : key.stop], [index - key.start for index in missing])
        return Batch(key, images[: len(labels)], torch.from_numpy(labels), None, broken, tuple(missing))

    def _prepared(self, image: torch.Tensor) -> torch.Tensor:
        if self._eval_transform is None:
            self._eval_transform = eval_transform(self.augment)
        return self._eval_transform(image)


def read_image(source: Source, index: int) -> torch.Tensor:
    """An image uint8 (C, H, W). Raises BrokenImage or OSError where it cannot be read."""
    data = source.read(index)
    return decode(data) if isinstance(data, bytes) else data


def training_keys(plan: Plan, rank: int, step: int) -> Iterator[Key]:
    """The micro-batches of one rank in one step: its contiguous share of the step's positions."""
    first = rank * plan.accumulation
    for slot in range(first, first + plan.accumulation):
        yield Key(step // plan.steps_per_epoch, *plan.slot(step, slot), plan.image_size(step))


def validation_keys(samples: int, batch_size: int, world_size: int, rank: int, size: int) -> Iterator[Key]:
    """Batches of the validation images for one rank: over all ranks each image once."""
    for start in range(rank * batch_size, samples, world_size * batch_size):
        yield Key(None, start, min(start + batch_size, samples), size)
