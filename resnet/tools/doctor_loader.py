"""Images a second of a recipe's loader as a whole, in the state that most of a training finds it in."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import torch

from recipes.schema.recipe import Recipe
from resnet.build import build_order, share_memory
from resnet.data.batches import Batch, Key, MicroBatches, Prepared
from resnet.data.cache import DrawnBatches, fill
from resnet.data.kept import kept_batches
from resnet.data.loader import Loader
from resnet.data.order import Order
from resnet.data.sources.registry import Subset, evenly
from resnet.data.sources.source import Source
from resnet.tools.doctor_stages import WARM_UP, Stages

_BATCH = 32
"""Images of the loader's batches at most, where they are made one by one: small ones come evenly."""
_CACHED = 2048
"""Images that are decoded onto the device, where all would be."""


def keys_of(order: Order, images: int, size: int) -> Iterator[Key]:
    """Batches of so many images, epoch after epoch."""
    images = min(images, len(order))
    for epoch in itertools.count():
        for start in range(0, len(order) - images + 1, images):
            yield Key(epoch, start, start + images, size)


class LoaderTimer:
    """Times the loader of a rank, with its workers, while nobody computes."""

    def __init__(
        self, recipe: Recipe, train: Source, val: Source, device: torch.device, workers: int, seconds: float
    ) -> None:
        self.recipe, self.train, self.val, self.device = recipe, train, val, device
        self.workers, self.seconds = workers, seconds

    def rate(self, stages: Stages, micro_batch: int, size: int) -> tuple[float, bool]:
        """Images a second; and whether they were read and decoded before, as from the second epoch on."""
        if self.recipe.data.cache == "device":
            return self._from_device(micro_batch, size), True
        memory = share_memory(self.recipe, self.train, self.val, 0)
        order = build_order(self.recipe, self.train)
        batches = kept_batches(self.recipe, self.train, self.val, order, self.device, memory)
        if memory is not None:
            keys = self._made(batches, keys_of(order, micro_batch, size))
            return self._rate(batches, itertools.cycle(keys)), True
        few = max(1, min(_BATCH, micro_batch, round(stages.per_second / 4)))
        return self._rate(batches, keys_of(order, few, size)), False

    def _made(self, batches: MicroBatches, keys: Iterator[Key]) -> list[Key]:
        """Keys of which the images are kept now: as many as there is time for."""
        end, made = time.monotonic() + self.seconds, []
        for key in keys:
            if key.epoch or (made and time.monotonic() > end):
                return made
            batches[key]
            made.append(key)
        return made

    def _from_device(self, micro_batch: int, size: int) -> float:
        sources = self.train, self.val
        train, val = (Subset(source, evenly(len(source), min(_CACHED, len(source)))) for source in sources)
        *_, filled = fill(train, val, self.recipe.augment, self._loader, micro_batch)
        assert filled is not None
        order = build_order(self.recipe, train)
        drawn = DrawnBatches(filled.train, filled.val, order, self.recipe.augment, operations_on_device=True)
        loader = self._loader(drawn, keys_of(order, micro_batch, size))
        try:
            return self._rate_of(filled.cache.look_up(iter(loader)))
        finally:
            loader.end()

    def _rate(self, batches: MicroBatches, keys: Iterator[Key]) -> float:
        loader = self._loader(batches, keys)
        try:
            return self._rate_of(iter(loader))
        finally:
            loader.end()

    def _loader(self, batches: Prepared, keys: Iterator[Key] | list[Key]) -> Loader:
        return Loader(batches, keys, self.device, self.workers, self.recipe.data.prefetch)

    def _rate_of(self, came: Iterator[Batch]) -> float:
        """From the time on when each worker's first batch has come."""
        for _ in range(max(1, self.workers)):
            next(came)
        begin, images = time.perf_counter(), 0
        for batch in came:
            images += len(batch.labels)
            if (spent := time.perf_counter() - begin) > self.seconds:
                return images / spent
        raise AssertionError("the keys have no end")


def copy_rate(batch: Batch, device: torch.device, times: int = 200) -> float:
    """Images a second from page-locked memory to the GPU."""
    pinned = (batch.images if batch.encoded is None else batch.encoded.files).pin_memory()
    for _ in range(WARM_UP):
        pinned.to(device, non_blocking=True)
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    for _ in range(times):
        pinned.to(device, non_blocking=True)
    torch.cuda.synchronize(device)
    return times * len(batch.labels) / (time.perf_counter() - begin)
