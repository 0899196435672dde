"""DALI's CPU operators: nvidia-dali-cuda120 with nvidia-nvimgcodec-cu12[all], too large for an extra."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipes.schema.augment import Augment
from recipes.schema.recipe import Recipe
from tests.bench.input.work import BATCH, Work


def _cropped(encoded: Any, augment: Augment) -> Any:
    """From encoded images to normalised float crops, CHW, as DALI's ResNet-50 example puts them together."""
    fn, types = import_module("nvidia.dali.fn"), import_module("nvidia.dali.types")
    images = fn.decoders.image_random_crop(
        encoded, device="cpu", random_area=augment.scale, random_aspect_ratio=augment.ratio
    )
    filters = {"bilinear": types.INTERP_TRIANGULAR, "bicubic": types.INTERP_CUBIC}
    size = (augment.train_size, augment.train_size)
    images = fn.resize(images, size=size, interp_type=filters[augment.interpolation], antialias=True)
    return fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT,
        output_layout="CHW",
        mean=[255 * value for value in augment.mean],
        std=[255 * value for value in augment.std],
        mirror=fn.random.coin_flip(probability=augment.hflip),
    )


def per_image(recipe: Recipe) -> Callable[[Work], Tensor]:
    """A row (see tests.bench.input.rows) of files in memory, on one thread."""
    dali = import_module("nvidia.dali")
    waiting: list[list[np.ndarray]] = []

    @dali.pipeline_def(batch_size=BATCH, num_threads=1, device_id=None, exec_async=False, exec_pipelined=False)
    def pipeline():
        encoded = dali.fn.external_source(lambda: waiting.pop(), batch=True, dtype=dali.types.UINT8)
        return _cropped(encoded, recipe.augment)

    built = pipeline()
    built.build()

    def row(work: Work) -> Tensor:
        waiting.append([np.frombuffer(file, np.uint8) for file in work.files])
        (batch,) = built.run()
        return torch.from_numpy(batch.as_array())

    return row


def loader(folder: Path, recipe: Recipe, workers: int, batch: int) -> Iterator[Tensor]:
    """Batches of an image folder, on so many threads, for ever."""
    dali = import_module("nvidia.dali")

    @dali.pipeline_def(batch_size=batch, num_threads=workers, device_id=None, prefetch_queue_depth=2)
    def pipeline():
        encoded, _ = dali.fn.readers.file(file_root=str(folder), random_shuffle=True, initial_fill=1024)
        return _cropped(encoded, recipe.augment)

    built = pipeline()
    built.build()
    while True:
        (images,) = built.run()
        yield torch.from_numpy(images.as_array())
