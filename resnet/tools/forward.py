"""Images through a network, batch by batch and in order: what predicting and features share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from recipes.schema.recipe import Recipe
from resnet.build import choose_precision
from resnet.data.batches import Batch
from resnet.data.sources.registry import Source
from resnet.tools.weights import autocast, batches_of, own_settings


class Forwarded(NamedTuple):
    """What a network gave for a batch."""

    start: int
    stop: int
    """The images [start, stop) of the source."""
    indices: list[int]
    """Those that could be read."""
    outputs: torch.Tensor | None
    """A row for each of `indices`, on the device; None where there are none."""
    problems: dict[int, str]
    """By index: why an image could not be read."""


class _Indexed:
    """A source whose labels are its indices: they tell which images a batch holds."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.labels = np.arange(len(source))
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int) -> bytes | torch.Tensor:
        return self._source.read(index)

    def describe(self, index: int) -> str:
        return self._source.describe(index)


def forward(
    source: Source,
    recipe: Recipe,
    batch_size: int,
    device: torch.device,
    compute: Callable[[torch.Tensor], torch.Tensor],
) -> Iterator[Forwarded]:
    """What `compute` makes of the images uint8 (N, 3, H, W) of each batch, prepared as in the recipe's evaluation.

    Between two batches torch is as the caller left it; a batch or two is held at a time.
    """
    precision = choose_precision(recipe, on_cpu=False) if device.type == "cuda" else "no"
    batches = batches_of(_Indexed(source), recipe, batch_size, device)
    try:
        while True:
            with own_settings(recipe, device), torch.inference_mode(), autocast(precision, device):
                batch = next(batches, None)
                outputs = compute(batch.images) if batch is not None and len(batch.labels) else None
            if batch is None:
                return
            yield Forwarded(batch.key.start, batch.key.stop, batch.labels.tolist(), outputs, _problems(batch, source))
    finally:
        batches.close()  # pyright: ignore[reportAttributeAccessIssue]


def _problems(batch: Batch, source: Source) -> dict[int, str]:
    """By index of each image that the batch lacks: the reason."""
    missing = sorted(set(range(batch.key.start, batch.key.stop)) - set(batch.labels.tolist()))
    return {
        index: problem.removeprefix(f"{source.describe(index)}: ")
        for index, problem in zip(missing, batch.broken, strict=True)
    }


def choose_device(text: str) -> torch.device:
    """The device of auto, cpu, cuda or cuda:N. Raises ValueError for others, and GPUs that are not there."""
    count = torch.cuda.device_count()
    if text == "auto":
        text = "cuda" if count else "cpu"
    try:
        device = torch.device(text)
    except RuntimeError:
        raise ValueError(f"device {text} is none of auto, cpu, cuda and cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {text} is none of auto, cpu, cuda and cuda:N")
    if device.type == "cpu":
        return device
    device = torch.device("cuda", device.index or 0)
    if device.index >= count:
        raise ValueError(f"device {text}: torch finds {count or 'no'} GPUs here")
    return device
