"""What a data worker takes for an image, by stages: of images as they are, and as `resnet prepare` would make them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from resnet.data.arrays import BrokenImage
from resnet.data.batches import MicroBatches
from resnet.data.bijection import mix
from resnet.data.draws import drawing
from resnet.data.operations import apply_to_one
from resnet.data.sources.registry import evenly
from resnet.tools.prepare.forms import Form, store

SAMPLED = 400
"""Images that the stages are timed on, at most: spread over all."""
_PREPARED = 24
"""Images that are prepared to see what it gives."""
WARM_UP = 4
"""Images, batches and steps that are not counted."""


class Stages(NamedTuple):
    """Milliseconds that one worker takes for an image, on one thread."""

    read: float
    decode: float
    """With data.decode=region or gpu no more than looking into the file's header."""
    crop: float
    """Drawing, cropping, resizing and mirroring; with data.decode=region also decoding, with gpu only drawing."""
    policy: float
    """Rotation, colours and policy, where training is on a CPU."""

    @property
    def per_second(self) -> float:
        """Images."""
        return 1000 / sum(self)


class Sampled(NamedTuple):
    """What the stages were timed on."""

    images: int
    kilobytes: float
    """Of a file, on average; 0 for images that are no files."""
    longer_side: float
    """In pixels, the median."""
    cold: bool
    """Whether the files were dropped from the system's cache before."""


def time_stages(batches: MicroBatches, size: int, seconds: float, on_gpu: bool) -> tuple[Stages, Sampled]:
    """Time what a worker does for a training image, over a sample of them. Raises ValueError where none can be read.

    size: of the crops in pixels. on_gpu: policies are left to the GPU.
    """
    source = batches.train
    chosen = evenly(len(source), min(SAMPLED + WARM_UP, len(source)))
    chosen = np.random.default_rng(0).permutation(chosen).tolist()
    cold = sum([_drop_from_cache(source.describe(index)) for index in chosen]) == len(chosen)
    time_one = _timer(batches, size, on_gpu)
    timed, broken = [], []
    end = time.monotonic() + seconds
    for index in chosen:
        try:
            timed.append(time_one(source, index))
        except (BrokenImage, OSError) as error:
            broken.append(f"{source.describe(index)}: {error}")
        if len(timed) > WARM_UP and time.monotonic() > end:
            break
    if not timed:
        raise ValueError(f"none of {len(broken)} images could be read; the last is {broken[-1]}")
    stages = np.mean([spent for spent, _, _ in timed[WARM_UP:] or timed], axis=0)
    _, sizes, sides = zip(*timed, strict=True)
    return Stages(*stages.tolist()), Sampled(len(timed), np.mean(sizes) / 1000, float(np.median(sides)), cold)


def time_prepared(batches: MicroBatches, size: int, read: float, on_gpu: bool) -> dict[str, float]:
    """Images a second of a worker, of what `resnet prepare` would make of a few of them, by its options.

    read: milliseconds that reading an image takes, as it is.
    """
    files, time_one, rates = [], _timer(batches, size, on_gpu), {}
    for index in evenly(len(batches.train), min(_PREPARED, len(batches.train))).tolist():
        with contextlib.suppress(BrokenImage, OSError):
            files.append(batches.train.read(index))
    if not all(isinstance(file, bytes) for file in files):
        return rates
    for form in (Form("max_side", 400, 90), Form("raw", batches.augment.val_resize)):
        stored = []
        for file in files:
            with contextlib.suppress(BrokenImage):
                stored.append(_Read(store(form, file).image()))
        spent = [read + time_one(one, 0)[0].sum() for one in stored]
        if spent[1:]:
            rates[f"--{form.kind.replace('_', '-')} {form.side}"] = 1000 / float(np.mean(spent[1:]))
    return rates


class _Read:
    """A source of what was read of another."""

    def __init__(self, data: bytes | torch.Tensor) -> None:
        self._data = data

    def read(self, _: int) -> bytes | torch.Tensor:
        return self._data


def _timer(batches: MicroBatches, size: int, on_gpu: bool) -> Callable[[Any, int], tuple[np.ndarray, int, int]]:
    """A function that makes an image of a source: milliseconds of each stage, bytes, pixels of the longer side."""
    draw = drawing(batches.augment, size)
    once: Any = _Read

    def time_one(source: Any, index: int) -> tuple[np.ndarray, int, int]:
        torch.default_generator.manual_seed(mix(batches.order.seed, index))
        marks = [time.perf_counter()]
        data = source.read(index)
        marks.append(time.perf_counter())
        image = batches._read(once(data), 0)
        marks.append(time.perf_counter())
        height, width = batches._size(image)
        drawn = draw(height, width)
        image = batches._crop(size, image, drawn)
        marks.append(time.perf_counter())
        if drawn.operations and not on_gpu:
            apply_to_one(image, drawn.operations)
        marks.append(time.perf_counter())
        return 1000 * np.diff(marks), len(data) if isinstance(data, bytes) else 0, max(height, width)

    return time_one


def _drop_from_cache(name: str) -> bool:
    """Have a file's next reader ask the disk for it, where there is such a file and the system can be asked."""
    try:
        file = os.open(name, os.O_RDONLY)
    except (OSError, ValueError):
        return False
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    except (AttributeError, OSError):
        return False
    finally:
        os.close(file)
    return True
