"""All images of a run on its device, decoded once: the workers only draw, and the device crops and flips.

The same draws from the same seeds as without a cache (see resnet.data.transforms), and the same pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from recipes.schema.augment import Augment
from resnet.data.batches import Batch, Key, MicroBatches, read_image
from resnet.data.decode import BrokenImage
from resnet.data.draws import Draw, Drawn
from resnet.data.loader import Loader
from resnet.data.sources.registry import Source
from resnet.data.transforms import Crop, eval_transform, squeeze
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
    """A source whose images lie in the cache: reading one gives its index there, or the reason why it has none."""

    def __init__(self, source: Source, broken: dict[int, str]) -> None:
        self._source, self._broken = source, broken
        self.labels, self.classes = source.labels, source.classes

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> torch.Tensor:
        if index in self._broken:
            raise BrokenImage(self._broken[index])
        return torch.tensor(index)

    def describe(self, index: int) -> str:
        return self._source.describe(index)


class DrawnBatches(MicroBatches):
    """Micro-batches of cached sources: in the place of images (N, DRAWN) what is drawn for them."""

    def _memory(self, images: int, size: int) -> torch.Tensor:
        return torch.empty((images, DRAWN), dtype=torch.int64)

    def _draw(self, draw: Draw, image: torch.Tensor) -> Drawn:
        return draw(0, 0)  # the crops of cached images do not depend on the sizes that they once had

    def _crop(self, crop: Crop, image: torch.Tensor, drawn: Drawn) -> torch.Tensor:
        return torch.tensor([int(image), *drawn.crop[:2], drawn.mirrored, drawn.flipped])

    def _prepared(self, image: torch.Tensor) -> torch.Tensor:
        return torch.tensor([int(image), 0, 0, 0, 0])


def frame_of(augment: Augment) -> int:
    """Pixels of zeros on each side of a training image."""
    return augment.padding if augment.crop == "pad" else 0


class _Prepared(Dataset):
    """Makes consecutive images as they lie in the cache; those that cannot be read are black and have the label -1."""

    def __init__(self, train: Source, val: Source, augment: Augment) -> None:
        size = augment.train_size
        self.sources = {_TRAINING: (train, squeeze(size, augment)), None: (val, eval_transform(augment))}

    def __getitem__(self, key: Key) -> Batch:
        source, transform = self.sources[key.epoch]
        broken: list[str] = []
        images = torch.zeros((key.stop - key.start, 3, key.size, key.size), dtype=torch.uint8)
        labels = torch.from_numpy(source.labels[key.start : key.stop].astype("int64"))
        for row, index in enumerate(range(key.start, key.stop)):
            image = read_image(source, index, broken)
            if image is None:
                labels[row] = -1
            else:
                images[row] = transform(image)
        return Batch(key, images.permute(0, 2, 3, 1).contiguous(), labels, None, broken)


class Filled(NamedTuple):
    """What `fill` made: the cache, and the sources as they lie in it."""

    cache: Cache
    train: CachedSource
    val: CachedSource


def fill(
    train: Source, val: Source, augment: Augment, loader: Callable[[Dataset[Batch], list[Key]], Loader], chunk: int
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
    workers = loader(_Prepared(train, val, augment), keys)
    try:
        for batch in workers:
            if not memory:
                shapes = _shapes(len(train), len(val), augment).items()
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
    needed = sum(math.prod(shape) for shape in _shapes(train, val, augment).values())
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    if free is not None and needed > free / 2:
        raise ValueError(
            f"data.cache=device needs {needed / 1e9:.1f} GB, more than half of the {free / 1e9:.1f} GB that are free "
            f"on the {'GPU' if device.type == 'cuda' else 'CPU for each rank'}: set data.cache=none"
        )


def _shapes(train: int, val: int, augment: Augment) -> dict[int | None, tuple[int, int, int, int]]:
    side = augment.train_size + 2 * frame_of(augment)
    return {_TRAINING: (train, side, side, 3), None: (val, augment.val_size, augment.val_size, 3)}
