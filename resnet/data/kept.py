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
from resnet.data.decode import decode
from resnet.data.draws import Drawn
from resnet.data.encoded import micro_batches
from resnet.data.node_memory import NodeMemory, is_possible, room_of
from resnet.data.order import Order
from resnet.data.sources.banded import Banded
from resnet.data.sources.registry import sampled
from resnet.data.sources.source import Source
from resnet.data.transforms import Transform, eval_transform, squeeze
from resnet.process.environment import machine_memory

SMALL = 1e9
"""Bytes of pixels up to which `data.cache=auto` keeps them."""
_USED = 64
"""At the beginning of memory for files: room for the number of bytes that are used."""
_SPARE = 1.25


def memory_for(recipe: Recipe, train: Source, val: Source) -> NodeMemory | None:
    """Memory for what a recipe wants to be kept of so many images; None: nothing.

    Raises ValueError where it is asked for and there is no room, or nothing to be gained.
    """
    asked, pixels = recipe.data.cache == "memory", keeps_pixels(recipe)
    if not is_possible():
        if asked:
            raise ValueError("data.cache=memory needs Linux, and a Python with os.memfd_create: set data.cache=none")
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
    try:
        return NodeMemory(needed)
    except OSError as error:
        raise ValueError(f"data.cache=memory: there is no memory to be had ({error}): set data.cache=none") from error


def keeps_pixels(recipe: Recipe) -> bool:
    """Whether images are kept decoded: those that are all brought to one size, by the CPU."""
    return recipe.data.decode != "gpu" and not recipe.augment.beyond_cache()


def bytes_of_pixels(train: int, val: int, augment: Augment) -> int:
    """Of memory, for so many images."""
    return sum(_room_of_pixels(shape) for shape in shapes_of(train, val, augment).values())


def _room_of_pixels(shape: tuple[int, int, int, int]) -> int:
    return room_of(shape, np.uint8) + room_of(shape[:1], bool)


def bytes_of_files(sources: Sequence[Source]) -> int:
    """Of memory, estimated from a sample and with something to spare. Raises ValueError where there are no files."""
    total = _USED
    for source in sources:
        sizes = [0]
        for data in sampled(source.files if isinstance(source, Banded) else source):
            if not isinstance(data, bytes):
                raise ValueError("data.cache=memory has no effect on images that come decoded: set data.cache=none")
            sizes.append(len(data))
        mean = sum(sizes) / max(1, len(sizes) - 1)
        total += int(_SPARE * mean * len(source)) + room_of((2, len(source)), np.int64)
    return total


def kept_batches(
    recipe: Recipe, train: Source, val: Source, order: Order, device: torch.device, memory: NodeMemory | None
) -> MicroBatches:
    """A recipe's micro-batches for a device, of images kept in the memory if there is one, which `memory_for` made."""
    if memory is not None and keeps_pixels(recipe):
        return PixelBatches(train, val, order, recipe.augment, device.type == "cuda", memory)
    if memory is not None:
        train, val = _kept_files(train, val, memory)
    return micro_batches(recipe, train, val, order, device)


class PixelSource:
    """A source (see `source.Source`) whose images are kept once they were read, brought to the size of the cache."""

    def __init__(
        self,
        source: Source,
        transform: Transform,
        frame: int,
        shape: tuple[int, int, int, int],
        memory: NodeMemory,
        start: int,
    ) -> None:
        self._source, self._transform, self._memory = source, transform, memory
        self.labels, self.classes = source.labels, source.classes
        self.pixels = memory.array(start, shape, np.uint8)
        self.there = memory.array(start + room_of(shape, np.uint8), shape[:1], bool)
        self._inner = self.pixels[:, frame : shape[1] - frame, frame : shape[2] - frame]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> torch.Tensor:
        if self.there[index]:
            return torch.from_numpy(self._inner[index]).permute(2, 0, 1)
        data = self._source.read(index)
        image = self._transform(decode(data) if isinstance(data, bytes) else data)
        self._inner[index] = image.permute(1, 2, 0).numpy()
        # Calls of the kernel between the two: no processor lets others see the second before the first.
        with self._memory.locked():
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
        kept = PixelSource(train, squeeze(augment.train_size, augment), frame_of(augment), shape, memory, 0)
        kept_val = PixelSource(val, eval_transform(augment), 0, val_shape, memory, _room_of_pixels(shape))
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
        return _batch(images.view(np.uint8).reshape(*images.shape, self.augment.channels))

    def _whole(self, index: np.ndarray) -> torch.Tensor:
        return _batch(self._validation_pixels[index])


def _windows(pixels: np.ndarray, size: int) -> np.ndarray:
    """A view (n, offsets, offsets, size, size) of pixels: of each image, its crops from each top and left."""
    whole = pixels.view(np.dtype(f"V{pixels.shape[-1]}"))[..., 0]
    offsets = whole.shape[1] - size + 1
    image, row, column = whole.strides
    shape, strides = (len(whole), offsets, offsets, size, size), (image, row, column, row, column)
    return np.lib.stride_tricks.as_strided(whole, shape, strides, writeable=False)


def _batch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


class FileSource:
    """A source (see `source.Source`) of files whose bytes are kept once they were read, while there is room."""

    def __init__(self, source: Source, memory: NodeMemory, start: int, room: int) -> None:
        self._given = source, memory, start, room
        self._source, self._memory = source, memory
        self.labels, self.classes = source.labels, source.classes
        self._used = memory.array(0, (1,), np.int64)
        self._starts, self._sizes = memory.array(start, (2, len(source)), np.int64)
        self._room = memory.array(room, (memory.size - room,), np.uint8)

    def __reduce__(self) -> tuple[type, tuple]:
        return FileSource, self._given

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes | torch.Tensor:
        # First the size, which is written last: where there is one, the start is there too.
        if size := self._sizes[index]:
            start = self._starts[index]
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


def _kept_files(train: Source, val: Source, memory: NodeMemory) -> tuple[Source, Source]:
    first = _USED
    second = first + room_of((2, len(train)), np.int64)
    room = second + room_of((2, len(val)), np.int64)
    return _kept_at(train, memory, first, room), _kept_at(val, memory, second, room)


def _kept_at(source: Source, memory: NodeMemory, start: int, room: int) -> Source:
    if isinstance(source, Banded):
        return source.over(FileSource(source.files, memory, start, room))
    return FileSource(source, memory, start, room)
