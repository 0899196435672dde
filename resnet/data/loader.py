"""The pool of worker processes that makes batches ahead of time, for training and evaluation alike.

The list of keys of a run is known before it starts, and the workers hold no state: whatever made batch 1000 before an
interruption makes the same batch after it, and starting there costs nothing.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from recipes.plan import Plan
from recipes.schema.augment import SizeAt
from resnet.data.batches import Batch, Key, Prepared
from resnet.data.sources.registry import sampled
from resnet.data.sources.source import Source
from resnet.process.environment import cores_of_rank
from resnet.process.signals import SIGNALS, die_with_parent


def workers_per_rank(asked: int | None) -> int:
    """Decoding processes: as asked, else one for each CPU core that this rank may use, at most 16."""
    return min(16, cores_of_rank()) if asked is None else asked


def check_shared_memory(plan: Plan, workers: int, prefetch: int, train: Source) -> None:
    """Raise ValueError where the batches that the workers of a node prepare do not fit into /dev/shm."""
    place = Path("/dev/shm")
    if not workers or not place.is_dir():
        return
    size = max(corner.size for corner in plan.recipe.augment.progressive or [SizeAt(epoch=0, size=plan.image_size(0))])
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    image = plan.recipe.model.in_channels * size**2
    if plan.recipe.data.decode == "gpu":
        files = [len(data) for data in sampled(train) if isinstance(data, bytes)]
        image = max(image, sum(files) / max(1, len(files)))
    needed = ranks * workers * prefetch * plan.micro_batch * image
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
        self, batches: Prepared, keys: Iterable[Key], device: torch.device, workers: int, prefetch: int
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
        self.device = device
        self._finish = batches.finish
        self._workers: list[Any] = []
        self._begun: Callable[[], Any] = lambda: None

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._loader)
        self._begun = weakref.ref(batches)
        self._workers += getattr(batches, "_workers", ())
        if self.device.type == "cuda":
            return _copied_ahead(batches, self.device, self._finish)
        return (self._finish(batch, self.device) for batch in batches)

    def end(self, ask: bool = False) -> None:
        """End what is left of the workers: they do not heed the SIGTERM by which Python ends them at its exit.

        ask: them first, and wait: where Ctrl-C came in the middle, PyTorch would complain of workers that end unasked.
        """
        if ask and hasattr(batches := self._begun(), "_shutdown_workers"):
            batches._shutdown_workers()
        if self._workers:
            gc.collect()
        for worker in self._workers:
            if worker.is_alive():
                worker.kill()


def _copied_ahead(
    batches: Iterator[Batch], device: torch.device, finish: Callable[[Batch, torch.device], Batch]
) -> Iterator[Batch]:
    """Copy each batch to the GPU on a stream of its own, and finish it, while the one before it is computed on."""
    stream = torch.cuda.Stream(device)
    ahead = None
    for batch in batches:
        with torch.cuda.stream(stream):
            moved = finish(batch.to(device), device)
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
