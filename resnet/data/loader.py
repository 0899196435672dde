"""Batches in the order of the run, for training and evaluation alike, from one pool of workers.

A `Key` says everything about a micro-batch; the list of keys of a run is known before it starts. The workers hold no
state: whatever made batch 1000 before an interruption makes the same batch after it, and starting there costs nothing.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from recipes.plan import Plan
from recipes.schema.data import Augment, SizeAt
from resnet.data.decode import BrokenImage, decode
from resnet.data.on_device import draw_erasing
from resnet.data.order import Order, mix
from resnet.data.sources.registry import Source
from resnet.data.transforms import Transform, eval_transform, train_transform
from resnet.process.environment import cores_of_rank
from resnet.process.signals import SIGNALS, die_with_parent

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
    """uint8 (N, 3, H, W)."""
    labels: torch.Tensor
    """int64 (N,)."""
    erased: torch.Tensor | None
    """int64 (N, 4): top, left, height and width of the rectangle that random erasing blanks; height 0 for none."""
    broken: list[str]
    """Images that could not be read, each with the reason; others stand in their place (in training)."""


class MicroBatches(Dataset):
    """Makes the batch of a key: read, decode, transform."""

    def __init__(self, train: Source, val: Source, order: Order, augment: Augment) -> None:
        self.train, self.val, self.order, self.augment = train, val, order, augment
        self._transforms: dict[int | None, Transform] = {}

    def __getitem__(self, key: Key) -> Batch:
        return self._validation(key) if key.epoch is None else self._training(key, key.epoch)

    def _transform(self, key: Key) -> Transform:
        """That of training at the key's size, or of validation; made once."""
        size = None if key.epoch is None else key.size
        if size not in self._transforms:
            self._transforms[size] = (
                eval_transform(self.augment) if size is None else train_transform(self.augment, size)
            )
        return self._transforms[size]

    def _training(self, key: Key, epoch: int) -> Batch:
        transform = self._transform(key)
        order, broken, erased = self.order.epoch(epoch), [], []
        images = torch.empty((key.stop - key.start, 3, key.size, key.size), dtype=torch.uint8)
        labels = torch.empty(key.stop - key.start, dtype=torch.int64)
        for row, position in enumerate(range(key.start, key.stop)):
            image, index = self._readable(order, position, broken)
            torch.default_generator.manual_seed(mix(self.order.seed, epoch, position, _AUGMENT))
            images[row] = transform(image)
            labels[row] = int(self.train.labels[index])
            if self.augment.random_erasing:
                erased.append(draw_erasing(self.augment.random_erasing, key.size))
        return Batch(key, images, labels, torch.tensor(erased) if erased else None, broken)

    def _readable(self, order, position: int, broken: list[str]) -> tuple[torch.Tensor, int]:
        """The image at a position; in place of a broken one, the next of the same order."""
        for ahead in range(_MOST_BROKEN_IN_A_ROW):
            index = int(order[(position + ahead) % len(order)])
            image = _read(self.train, index, broken)
            if image is not None:
                return image, index
        raise BrokenImage(f"{_MOST_BROKEN_IN_A_ROW} images in a row cannot be read; the last is {broken[-1]}")

    def _validation(self, key: Key) -> Batch:
        transform, broken = self._transform(key), []
        rows = [(_read(self.val, index, broken), int(self.val.labels[index])) for index in range(key.start, key.stop)]
        images = [transform(image) for image, _ in rows if image is not None]
        labels = [label for image, label in rows if image is not None]
        stacked = torch.stack(images) if images else torch.empty((0, 3, key.size, key.size), dtype=torch.uint8)
        return Batch(key, stacked, torch.tensor(labels, dtype=torch.int64), None, broken)


def _read(source: Source, index: int, broken: list[str]) -> torch.Tensor | None:
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


def workers_per_rank(asked: int | None) -> int:
    """Decoding processes: as asked, else one for each CPU core that this rank may use, at most 16."""
    return min(16, cores_of_rank()) if asked is None else asked


def check_shared_memory(plan: Plan, workers: int, prefetch: int) -> None:
    """Raise ValueError where the batches that the workers of a node prepare do not fit into /dev/shm."""
    place = Path("/dev/shm")
    if not workers or not place.is_dir():
        return
    size = max(corner.size for corner in plan.recipe.augment.progressive or [SizeAt(epoch=0, size=plan.image_size(0))])
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed = ranks * workers * prefetch * plan.micro_batch * 3 * size**2
    there = os.statvfs(place)
    free = there.f_bavail * there.f_frsize
    if needed > free:
        raise ValueError(
            f"/dev/shm has {free / 1e6:.0f} MB free, and {ranks} x {workers} data workers that prefetch {prefetch} "
            f"batches each may fill {needed / 1e6:.0f} MB: enlarge it (docker: --shm-size), or lower data.prefetch or "
            "data.num_workers"
        )


class Loader:
    """Iterates over the batches of `keys`, decoded by worker processes ahead of time."""

    def __init__(
        self, batches: MicroBatches, keys: Iterable[Key], device: torch.device, workers: int, prefetch: int
    ) -> None:
        self._loader = DataLoader(
            batches,
            batch_size=None,
            sampler=keys,  # pyright: ignore[reportArgumentType]
            collate_fn=_as_it_is,  # pyright: ignore[reportArgumentType]
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            pin_memory=device.type == "cuda",
            worker_init_fn=_start_worker,
        )
        self._device = device
        self._workers: list[Any] = []

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._loader)
        self._workers += getattr(batches, "_workers", ())
        return _copied_ahead(batches, self._device) if self._device.type == "cuda" else batches

    def end(self) -> None:
        """End what is left of the workers: they do not heed the SIGTERM by which Python ends them at its exit."""
        gc.collect()
        for worker in self._workers:
            if worker.is_alive():
                worker.kill()


def _copied_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Copy each batch to the GPU on a stream of its own while the one before it is computed on."""
    stream = torch.cuda.Stream(device)
    ahead = None
    for batch in batches:
        with torch.cuda.stream(stream):
            moved = batch._replace(
                images=batch.images.to(device, non_blocking=True),
                labels=batch.labels.to(device, non_blocking=True),
                erased=None if batch.erased is None else batch.erased.to(device, non_blocking=True),
            )
            copied = torch.cuda.Event()
            copied.record(stream)
        if ahead is not None:
            yield _on_current_stream(*ahead)
        ahead = moved, copied
    if ahead is not None:
        yield _on_current_stream(*ahead)


def _on_current_stream(batch: Batch, copied: torch.cuda.Event) -> Batch:
    current = torch.cuda.current_stream()
    current.wait_event(copied)
    for tensor in (batch.images, batch.labels, batch.erased):
        if tensor is not None:
            tensor.record_stream(current)
    return batch


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _start_worker(_: int) -> None:
    """Signals are for the trainer: a worker that died of one would take the batches on their way with it."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    assert trainer.pid is not None
    die_with_parent(signal.SIGKILL, trainer.pid)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
