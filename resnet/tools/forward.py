"""Images through a network, batch by batch and in order: what predicting and features share."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import NamedTuple

import numpy as np
import torch

from recipes.schema.recipe import Recipe
from resnet.build import choose_precision
from resnet.data.sources.registry import Subset
from resnet.data.sources.source import Source
from resnet.tools.weights import autocast, batches_of, own_settings

DECODED_HERE = "data.decode=gpu: decoded by the CPU here, to slightly other pixels"


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


def forward(
    source: Source,
    recipe: Recipe,
    batch_size: int,
    device: torch.device,
    compute: Callable[[torch.Tensor], torch.Tensor],
    start: int = 0,
) -> Generator[Forwarded, None, None]:
    """What `compute` makes of the images uint8 (N, 3, H, W) of each batch, prepared as in the recipe's evaluation.

    start: index of the first image. Between two batches torch is as the caller left it; a few batches are held at a
    time, those that workers prepare included.
    """
    precision = evaluation_precision(recipe, device)
    rest = Subset(source, np.arange(start, len(source))) if start else source
    batches = batches_of(rest, recipe, batch_size, device)
    try:
        while True:
            with own_settings(recipe, device), torch.inference_mode(), autocast(precision, device):
                batch = next(batches, None)
                outputs = compute(batch.images) if batch is not None and len(batch.labels) else None
            if batch is None:
                return
            indices = (start + batch.indices(torch.device("cpu"))).tolist()
            problems = {start + at: text for at, text in zip(batch.missing, batch.broken, strict=True)}
            reasons = {at: text.removeprefix(f"{source.describe(at)}: ") for at, text in problems.items()}
            yield Forwarded(start + batch.key.start, start + batch.key.stop, indices, outputs, reasons)
    finally:
        batches.close()  # pyright: ignore[reportAttributeAccessIssue]


def evaluation_precision(recipe: Recipe, device: torch.device, tell: Callable[[str], object] = lambda _: None) -> str:
    """The precision of a recipe's evaluation on a device, for `autocast`.

    tell: is called with what a CPU does otherwise: it has no fp16, and decodes all images itself.
    """
    on_cpu = device.type == "cpu"
    if on_cpu and recipe.data.decode == "gpu":
        tell(DECODED_HERE)
    if on_cpu and recipe.precision == "fp16":
        tell("precision=fp16 needs a GPU: computed in float32 here")
        return "no"
    return choose_precision(recipe, on_cpu)


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
