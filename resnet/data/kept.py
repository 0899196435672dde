"""Images that are kept in the memory of a machine as they are first read, for all its ranks: `data.cache=memory`.

Of images that are all brought to one size the pixels, so that nothing is decoded again and a batch is made at once; of
others the bytes of their files. The batches are those without a cache, to the last bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import torch

from recipes.schema.augment import Augment
from recipes.schema.recipe import Recipe
from resnet.data.batches import MicroBatches
from resnet.data.cache import CachedBatches, frame_of, shapes_of, table_of
from resnet.data.decode import BrokenImage, decode
from resnet.data.draws import Drawn
from resnet.data.node_memory import NodeMemory, is_possible, room_of
from resnet.data.order import Order
from resnet.data.sources.registry import Source, evenly
from resnet.data.transforms import Transform, eval_transform, squeeze
from resnet.process.environment import machine_memory

SMALL = 1e9
"""Bytes of pixels up to which `data.cache=auto` keeps them."""
_PIXEL = np.dtype("V3")
_SAMPLED = 64
_SPARE = 1.25


def memory_for(recipe: Recipe, train: Source, val: Source) -> NodeMemory | None:
    """Memory for what a recipe wants to be kept of so many images; None: nothing.

    Raises ValueError where it is asked for and there is no room, or nothing to be gained.
    """
    asked, pixels = recipe.data.cache == "memory", not recipe.augment.beyond_cache()
    if not is_possible():
        if asked:
            raise ValueError("data.cache=memory needs Linux: set data.cache=none")
        return None
    if pixels:
        needed = bytes_of_pixels(len(train), len(val), recipe.augment)
    elif asked:
        needed = bytes_of_files((train, val))
    else:
        return None
    free = machine_memory()
    if not asked:
        small = needed <= SMALL and (free is None or needed <= free / 4)
        with contextlib.suppress(OSError):
            return NodeMemory(needed) if small else None
        return None
    if free is not None and needed > free / 2:
        raise ValueError(
            f"data.cache=memory may need {needed / 1e9:.1f} GB, more than half of the {free / 1e9:.1f} GB that are "
            "free on this machine: set data.cache=none"
        )
    return NodeMemory(needed)


def bytes_of_pixels(train: int, val: int, augment: Augment) -> int:
    """Of memory, for so many images."""
    shapes = shapes_of(train, val, augment).values()
    return sum(room_of(shape, np.uint8) + room_of(shape[:1], bool) for shape in shapes)


def bytes_of_files(sources: Sequence[Source]) -> int:
    """Of memory, estimated from a sample and with something to spare. Raises ValueError where there are no files."""
    total = room_of((1,), np.int64)
    for source in sources:
        sizes = [0]
        for index in evenly(len(source), min(_SAMPLED, len(source))).tolist():
            with contextlib.suppress(OSError, BrokenImage):
                data = source.read(index)
                if not isinstance(data, bytes):
                    raise ValueError("data.cache=memory has no effect on images that come decoded: set data.cache=none")
                sizes.append(len(data))
        mean = sum(sizes) / max(1, len(sizes) - 1)
        total += int(_SPARE * mean * len(source)) + room_of((2, len(source)), np.int64)
    return total


def kept_batches(
    train: Source, val: Source, order: Order, augment: Augment, operations_on_device: bool, memory: NodeMemory
) -> MicroBatches:
    """Micro-batches of images that are kept in the memory, which `memory_for` made, as they are first read."""
    kind = FileBatches if augment.beyond_cache() else PixelBatches
    return kind(train, val, order, augment, operations_on_device, memory)


class PixelSource:
    """A source (see `registry.Source`) whose images are kept once they were read, brought to the size of the cache."""

    def __init__(self, source: Source, transform: Transform, frame: int, pixels: np.ndarray, there: np.ndarray) -> None:
        self._source, self._transform = source, transform
        self.labels, self.classes = source.labels, source.classes
        self.pixels, self.there = pixels, there
        self._inner = pixels[:, frame : pixels.shape[1] - frame, frame : pixels.shape[2] - frame]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> torch.Tensor:
        if self.there[index]:
            return torch.from_numpy(self._inner[index]).permute(2, 0, 1)
        data = self._source.read(index)
        image = self._transform(decode(data) if isinstance(data, bytes) else data)
        self._inner[index] = image.permute(1, 2, 0).numpy()
        self.there[index] = True
        return image

    def describe(self, index: int) -> str:
        return self._source.describe(index)


class PixelBatches(CachedBatches):
    """Micro-batches of images whose pixels are kept."""

    def __init__(
        self,
        train: Source,
        val: Source,
        order: Order,
        augment: Augment,
        operations_on_device: bool,
        memory: NodeMemory,
    ) -> None:
        self._given = train, val, order, augment, operations_on_device, memory
        shape, val_shape = shapes_of(len(train), len(val), augment).values()
        kept = _kept(train, squeeze(augment.train_size, augment), frame_of(augment), shape, memory)
        kept_val = _kept(val, eval_transform(augment), 0, val_shape, memory)
        super().__init__(kept, kept_val, order, augment, operations_on_device)
        self._windows, self._validation_pixels = _windows(kept.pixels, augment.train_size), kept_val.pixels

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), self._given

    def _cut(self, index: np.ndarray, drawn: list[Drawn]) -> torch.Tensor:
        table = table_of(drawn)
        images = self._windows[index, table[:, 0], table[:, 1]]
        mirrored, flipped = (np.flatnonzero(table[:, column]) for column in (2, 3))
        images[mirrored] = images[mirrored][:, :, ::-1]
        images[flipped] = images[flipped][:, ::-1]
        return _batch(images.view(np.uint8).reshape(*images.shape, 3))

    def _whole(self, index: np.ndarray) -> torch.Tensor:
        return _batch(self._validation_pixels[index])


def _kept(source: Source, transform: Transform, frame: int, shape: tuple[int, ...], memory: NodeMemory) -> PixelSource:
    return PixelSource(source, transform, frame, memory.take(shape, np.uint8), memory.take(shape[:1], bool))


def _windows(pixels: np.ndarray, size: int) -> np.ndarray:
    """A view (n, offsets, offsets, size, size) of pixels: of each image, its crops from each top and left."""
    whole = pixels.view(_PIXEL)[..., 0]
    offsets = whole.shape[1] - size + 1
    image, row, column = whole.strides
    shape, strides = (len(whole), offsets, offsets, size, size), (image, row, column, row, column)
    return np.lib.stride_tricks.as_strided(whole, shape, strides, writeable=False)


def _batch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


class FileSource:
    """A source (see `registry.Source`) of files whose bytes are kept once they were read, while there is room."""

    def __init__(
        self, source: Source, memory: NodeMemory, places: np.ndarray, used: np.ndarray, room: np.ndarray
    ) -> None:
        self._source, self._memory, self._used, self._room = source, memory, used, room
        self._starts, self._sizes = places
        self.labels, self.classes = source.labels, source.classes

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes | torch.Tensor:
        start, size = self._starts[index], self._sizes[index]
        if size:
            return self._room[start : start + size].tobytes()
        data = self._source.read(index)
        if isinstance(data, bytes):
            self._keep(index, data)
        return data

    def _keep(self, index: int, data: bytes) -> None:
        with self._memory.locked():
            start = int(self._used[0])
            if self._sizes[index] or start + len(data) > len(self._room):
                return
            self._used[0] = start + len(data)
            self._room[start : start + len(data)] = np.frombuffer(data, np.uint8)
            self._starts[index] = start
        # Last: it tells others that the rest is there.
        self._sizes[index] = len(data)

    def describe(self, index: int) -> str:
        return self._source.describe(index)


class FileBatches(MicroBatches):
    """Micro-batches of images whose files are kept."""

    def __init__(
        self, train: Source, val: Source, order: Order, augment: Augment, operations_on_device: bool, memory: NodeMemory
    ) -> None:
        self._given = train, val, order, augment, operations_on_device, memory
        used = memory.take((1,), np.int64)
        places, val_places = (memory.take((2, len(source)), np.int64) for source in (train, val))
        room = memory.take((memory.left,), np.uint8)
        kept = FileSource(train, memory, places, used, room)
        kept_val = FileSource(val, memory, val_places, used, room)
        super().__init__(kept, kept_val, order, augment, operations_on_device)

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), self._given
