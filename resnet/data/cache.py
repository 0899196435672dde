"""All images of a run on its device, decoded once: the workers only draw, and the device crops and flips.

The same draws from the same seeds as without a cache (see resnet.data.transforms), and the same pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch

from recipes.schema.augment import Augment
from resnet.data.arrays import BrokenImage
from resnet.data.batches import Batch, Key, MicroBatches, Prepared, read_image
from resnet.data.draws import Drawn
from resnet.data.loader import Loader
from resnet.data.on_device import draw_erasing
from resnet.data.order import Order
from resnet.data.sources.source import Source
from resnet.data.transforms import eval_transform, squeeze
from resnet.process.environment import available_memory

DRAWN = 5
"""What is drawn for an image: its index, the top and left of its crop in pixels, whether to mirror and to flip it."""
_TRAINING = 0
"""The epoch of a key that stands for training images while the cache is filled."""


class Cache:
    """uint8 images on a device in NHWC order: those of training in a frame of zeros to crop from, and of validation."""

    def __init__(self, train: torch.Tensor, val: torch.Tensor, size: int) -> None:
        self._train, self._val = train, val
        self._range = torch.arange(size, device=train.device)

    @property
    def bytes(self) -> int:
        return self._train.nbytes + self._val.nbytes

    def look_up(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The images of batches that hold what was drawn for them."""
        for batch in batches:
            drawn = batch.images.to(self._train.device)
            images = self._val[drawn[:, 0]] if batch.key.epoch is None else self._cropped(drawn)
            yield batch._replace(images=images.permute(0, 3, 1, 2))

    def _cropped(self, drawn: torch.Tensor) -> torch.Tensor:
        index, top, left, mirrored, flipped = (column[:, None] for column in drawn.unbind(1))
        backwards = len(self._range) - 1 - self._range
        rows = top + torch.where(flipped > 0, backwards, self._range)
        columns = left + torch.where(mirrored > 0, backwards, self._range)
        return self._train[index[:, :, None], rows[:, :, None], columns[:, None, :]]


class CachedSource:
    """A source whose images lie in the cache: reading one that does not gives the reason."""

    def __init__(self, source: Source, broken: dict[int, str]) -> None:
        self._source, self._broken = source, broken
        self.labels, self.classes = source.labels, source.classes
        self.there = np.ones(len(source), dtype=bool)
        self.there[list(broken)] = False

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> torch.Tensor:
        if index in self._broken:
            raise BrokenImage(self._broken[index])
        return torch.tensor(index)

    def describe(self, index: int) -> str:
        return self._source.describe(index)


class Kept(Source, Protocol):
    """A source of which some images are kept at one size."""

    there: np.ndarray
    """bool (n,): which."""


class CachedBatches(MicroBatches):
    """Micro-batches of sources whose images are kept at one size, and cut from there a whole batch at a time.

    To read an image that is not there yet keeps it, or tells why it has none.
    """

    def __init__(
        self, train: Kept, val: Kept, order: Order, augment: Augment, operations_on_device: bool = False
    ) -> None:
        super().__init__(train, val, order, augment, operations_on_device)
        self._there = train.there, val.there

    def _training(self, key: Key, epoch: int) -> Batch:
        (draw, _), index = self._draw_and_crop(key.size), self.order.at(epoch, np.arange(key.start, key.stop))
        broken, drawn, erased = [], [], []
        for row in np.flatnonzero(~self._there[0][index]).tolist():
            index[row] = self._first_whole(key, row, int(index[row]), broken, self._kept)
        for seed in self._seeds(key, epoch):
            torch.default_generator.manual_seed(seed)
            drawn.append(draw(0, 0))  # the crops of such images do not depend on the sizes that they once had
            if self.augment.random_erasing:
                erased.append(draw_erasing(self.augment.random_erasing, key.size))
        labels = torch.from_numpy(self.train.labels[index].astype(np.int64))
        return self._finished(key, self._cut(index, drawn), labels, drawn, erased, broken)

    def _validation(self, key: Key) -> Batch:
        broken: list[str] = []
        index = np.arange(key.start, key.stop)
        for row in np.flatnonzero(~self._there[1][index]).tolist():
            try:
                self.val.read(key.start + row)
            except (BrokenImage, OSError) as error:
                broken.append(f"{self.val.describe(key.start + row)}: {error}")
        there = self._there[1][index]
        labels = torch.from_numpy(self.val.labels[index[there]].astype(np.int64))
        return Batch(key, self._whole(index[there]), labels, None, broken, tuple(index[~there].tolist()))

    def _kept(self, index: int) -> int:
        """The index itself, of a training image that is there now. Raises as a source's `read`."""
        self.train.read(index)
        return index

    def _cut(self, index: np.ndarray, drawn: list[Drawn]) -> torch.Tensor:
        """The training images at `index`, cropped and flipped as drawn."""
        raise NotImplementedError

    def _whole(self, index: np.ndarray) -> torch.Tensor:
        """The validation images at `index`."""
        raise NotImplementedError


def table_of(drawn: list[Drawn]) -> np.ndarray:
    """int64 (n, 4): top and left of each crop in pixels, whether to mirror and to flip it."""
    return np.array([(*each.crop[:2], each.mirrored, each.flipped) for each in drawn], dtype=np.int64)


class DrawnBatches(CachedBatches):
    """Micro-batches of sources in a `Cache`: in the place of images (N, DRAWN) what is drawn for them."""

    def _cut(self, index: np.ndarray, drawn: list[Drawn]) -> torch.Tensor:
        return torch.from_numpy(np.column_stack([index, table_of(drawn)]))

    def _whole(self, index: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.column_stack([index, np.zeros((len(index), DRAWN - 1), dtype=np.int64)]))


def frame_of(augment: Augment) -> int:
    """Pixels of zeros on each side of a training image."""
    return augment.padding if augment.crop == "pad" else 0


class _Shaped(Prepared):
    """Makes consecutive images as they lie in the cache; those that cannot be read are black and have the label -1."""

    def __init__(self, train: Source, val: Source, augment: Augment) -> None:
        size, self._channels = augment.train_size, augment.channels
        self.sources = {_TRAINING: (train, squeeze(size, augment)), None: (val, eval_transform(augment))}

    def __getitem__(self, key: Key) -> Batch:
        source, transform = self.sources[key.epoch]
        broken: list[str] = []
        images = torch.zeros((key.stop - key.start, self._channels, key.size, key.size), dtype=torch.uint8)
        labels = torch.from_numpy(source.labels[key.start : key.stop].astype("int64"))
        for row, index in enumerate(range(key.start, key.stop)):
            try:
                images[row] = transform(read_image(source, index))
            except (BrokenImage, OSError) as error:
                labels[row] = -1
                broken.append(f"{source.describe(index)}: {error}")
        return Batch(key, images.permute(0, 2, 3, 1).contiguous(), labels, None, broken)


class Filled(NamedTuple):
    """What `fill` made: the cache, and the sources as they lie in it."""

    cache: Cache
    train: CachedSource
    val: CachedSource


def fill(
    train: Source, val: Source, augment: Augment, loader: Callable[[Prepared, list[Key]], Loader], chunk: int
) -> Iterator[Filled | None]:
    """Decode everything onto the device: yields None so often that one can ask to stop, and at last what was made.

    loader: makes the workers. chunk: images that a worker decodes at a time.
    """
    sizes, memory = {_TRAINING: augment.train_size, None: augment.val_size}, {}
    broken: dict[int | None, dict[int, str]] = {_TRAINING: {}, None: {}}
    keys = [
        Key(which, start, min(start + chunk, len(source)), sizes[which])
        for which, source in ((_TRAINING, train), (None, val))
        for start in range(0, len(source), chunk)
    ]
    workers = loader(_Shaped(train, val, augment), keys)
    try:
        for batch in workers:
            if not memory:
                shapes = shapes_of(len(train), len(val), augment).items()
                memory = {w: torch.zeros(shape, dtype=torch.uint8, device=workers.device) for w, shape in shapes}
            which, start, stop, size = batch.key
            frame = frame_of(augment) if which == _TRAINING else 0
            memory[which][start:stop, frame : frame + size, frame : frame + size] = batch.images
            missing = (batch.labels < 0).nonzero().flatten().tolist() if batch.broken else []
            for row, told in zip(missing, batch.broken, strict=True):
                broken[which][start + row] = told.removeprefix(
                    f"{(val if which is None else train).describe(start + row)}: "
                )
            yield None
    finally:
        workers.end()
    cache = Cache(memory[_TRAINING], memory[None], augment.train_size)
    yield Filled(cache, CachedSource(train, broken[_TRAINING]), CachedSource(val, broken[None]))


def check_room(train: int, val: int, augment: Augment, device: torch.device) -> None:
    """Raise ValueError where so many images would take more than half of the memory that is free on the device."""
    needed = bytes_needed(train, val, augment)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    if free is not None and needed > free / 2:
        raise ValueError(
            f"data.cache=device needs {needed / 1e9:.1f} GB, more than half of the {free / 1e9:.1f} GB that are free "
            f"on the {'GPU' if device.type == 'cuda' else 'CPU for each rank'}: set data.cache=none"
        )


def bytes_needed(train: int, val: int, augment: Augment) -> int:
    """Of the device's memory, for so many images."""
    return sum(math.prod(shape) for shape in shapes_of(train, val, augment).values())


def shapes_of(train: int, val: int, augment: Augment) -> dict[int | None, tuple[int, int, int, int]]:
    side = augment.train_size + 2 * frame_of(augment)
    channels = augment.channels
    return {_TRAINING: (train, side, side, channels), None: (val, augment.val_size, augment.val_size, channels)}
