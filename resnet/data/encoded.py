"""Micro-batches whose JPEGs travel to the device as the bytes of their files, to be decoded, cropped and flipped there.

The workers read the files, look into their headers and draw; what the GPU's decoder does not take they make themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from recipes.schema.augment import Augment
from recipes.schema.recipe import Recipe
from resnet.data.arrays import BrokenImage
from resnet.data.batches import Batch, Encoded, Key, MicroBatches
from resnet.data.draws import Drawn
from resnet.data.gpu_decode import check_gpu_decodes, decode_on
from resnet.data.order import Order
from resnet.data.region_decode import RegionBatches
from resnet.data.sources.source import Source
from resnet.data.undecoded import Undecoded, UndecodedBatches

_MOST_PIXELS = 100_000_000
"""Of the images that are decoded at a time: 300 MB."""
_MOST_BYTES = 4_000_000
"""Of a file: larger ones would fill /dev/shm, and are decoded by the worker."""
_SHARED_MEMORY = 49152
"""Bytes that a block of torch's CUDA kernels may take."""


class EncodedBatches(UndecodedBatches):
    """Micro-batches that are whole after `finish`: before it, `images` are those that the worker made, in their order.

    Rotation, colours and policy are left to the device.
    """

    def __init__(self, train: Source, val: Source, order: Order, augment: Augment) -> None:
        super().__init__(train, val, order, augment, operations_on_device=True)

    def __getitem__(self, key: Key) -> Batch:
        batch = super().__getitem__(key)
        rows: list[Any] = batch.images  # pyright: ignore[reportAssignmentType]
        made = [image for image in rows if not isinstance(image, Undecoded)]
        images = super()._memory(len(made), key.size)
        for row, image in enumerate(made):
            images[row] = image
        return batch._replace(images=images, encoded=_encoded(rows) if len(made) < len(rows) else None)

    def finish(self, batch: Batch, device: torch.device) -> Batch:
        """Decode, crop and flip on the device, which the batch is on but for its files.

        Where a file with a sound header and its end proves broken only now, the batch is made anew on the CPU, so that
        another image stands in its place as always.
        """
        if batch.encoded is None:
            return batch
        shape = len(batch.labels), 3, batch.key.size, batch.key.size
        images = torch.empty(shape, dtype=torch.uint8, device=device, memory_format=torch.channels_last)
        if len(batch.images):
            decoded = {row for row, *_ in batch.encoded.table.tolist()}
            images[[row for row in range(len(images)) if row not in decoded]] = batch.images
        for row, image in self._decoded(batch.key, batch.encoded, device):
            if isinstance(image, BrokenImage):
                with torch.random.fork_rng(devices=[]):
                    plain = MicroBatches(self.train, self.val, self.order, self.augment, operations_on_device=True)
                    return plain[batch.key].to(device)
            images[row] = image
        return batch._replace(images=images, encoded=None)

    def _decoded(
        self, key: Key, encoded: Encoded, device: torch.device
    ) -> Iterator[tuple[int, torch.Tensor | BrokenImage]]:
        for group in _groups(encoded.table.tolist()):
            files = [encoded.files[start:stop].numpy().tobytes() for _, start, stop, *_ in group]
            for (row, _, _, _, *drawn), image in zip(group, decode_on(files, device), strict=True):
                yield row, image if isinstance(image, BrokenImage) else self._cropped(image, key, drawn)

    def _cropped(self, image: torch.Tensor, key: Key, drawn: list[int]) -> torch.Tensor:
        if key.epoch is None:
            return super()._prepared(image)
        top, left, height, width, mirrored, flipped = drawn
        return super()._crop(key.size, image, Drawn((top, left, height, width), bool(mirrored), bool(flipped), []))

    def _memory(self, images: int, size: int) -> Any:
        return [None] * images

    def _crop(self, size: int, image: Any, drawn: Drawn) -> Any:
        before = drawn.crop[2:] if self.augment.crop == "random_resized" else self._size(image)
        if self._is_for_the_device(image, before, size):
            return image._replace(drawn=drawn)
        return super()._crop(size, image, drawn)

    def _prepared(self, image: Any) -> Any:
        before, size = self._size(image), self.augment.val_size
        if self.augment.crop == "random_resized":
            # The shorter side gets a size, the longer one the same scale.
            before, size = (min(before), min(before)), self.augment.val_resize
        return image if self._is_for_the_device(image, before, size) else super()._prepared(image)

    def _is_for_the_device(self, image: Any, before: tuple[int, int], size: int) -> bool:
        return (
            isinstance(image, Undecoded)
            and len(image.data) <= _MOST_BYTES
            and is_resizable(before, size, self.augment.interpolation)
        )


def is_resizable(before: tuple[int, int], size: int, interpolation: str) -> bool:
    """Whether torch's antialiasing CUDA kernel can make size x size pixels of (height, width).

    A block holds the weights of 32 columns, and those of a row with what the 32 made of it (UpSampleBilinear2d.cu).
    """
    reach = 2 if interpolation == "bicubic" else 1
    # And one to either side, as sizes are rounded.
    down, across = (2 * math.ceil(reach * max(1, side / size)) + 3 for side in before)
    return 4 * (32 * across + 33 * down) <= _SHARED_MEMORY


def _encoded(rows: list[Undecoded | torch.Tensor]) -> Encoded:
    table, files, end = [], [], 0
    for row, image in enumerate(rows):
        if isinstance(image, Undecoded):
            drawn, start, end = image.drawn, end, end + len(image.data)
            files.append(image.data)
            table.append([row, start, end, image.height * image.width, *drawn.crop, drawn.mirrored, drawn.flipped])
    return Encoded(torch.frombuffer(bytearray().join(files), dtype=torch.uint8), torch.tensor(table))


def _groups(table: list[list[int]]) -> Iterator[list[list[int]]]:
    """The rows of the table, so many at a time that their images are no more than _MOST_PIXELS, but one at least."""
    group, pixels = [], 0
    for row in table:
        if group and pixels + row[3] > _MOST_PIXELS:
            yield group
            group, pixels = [], 0
        group.append(row)
        pixels += row[3]
    yield group


def micro_batches(recipe: Recipe, train: Source, val: Source, order: Order, device: torch.device) -> MicroBatches:
    """Those of a recipe for a device: its images are decoded where data.decode says, on a CPU by the CPU.

    Raises ValueError where the GPU is to decode and cannot.
    """
    on_gpu = device.type == "cuda"
    if recipe.data.decode == "gpu" and on_gpu:
        check_gpu_decodes(device)
        return EncodedBatches(train, val, order, recipe.augment)
    kind = RegionBatches if recipe.data.decode == "region" else MicroBatches
    return kind(train, val, order, recipe.augment, operations_on_device=on_gpu)
