"""What the rows of a table are given to do: files in memory, and the seed of what is drawn for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from recipes.load import load_values
from recipes.schema.recipe import Recipe
from resnet.data.bijection import mix
from resnet.data.order import Order
from resnet.data.sources.given import images_of
from resnet.data.sources.registry import evenly
from resnet.tools.prepare.forms import Form, store

BATCH = 32
"""Images of a micro-batch."""
SMALLER = Form("max_side", 400, 90)
"""The smaller files that all rows of a table can be given."""
_AUGMENT = 1
"""What resnet.data.batches mixes into an image's seed."""


class Work(NamedTuple):
    """Images of an epoch, in its order from a position on."""

    epoch: int
    start: int
    files: list[bytes]
    seeds: list[int]
    """For torch's generator before an image, as ours does: all that draw from it then draw the same crops."""


class Held:
    """A source (see `resnet.data.sources.source.Source`) of files in memory."""

    def __init__(self, files: Sequence[bytes], form: Form | None = None) -> None:
        """form: what `resnet prepare` makes of them."""
        self.files = files
        self._stored = [store(form or Form(), file) for file in files]
        self.labels = np.zeros(len(files), dtype=np.int64)
        self.classes = ["any"]

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> bytes | torch.Tensor:
        return self._stored[index].image()

    def describe(self, index: int) -> str:
        return f"file {index}"

    def order(self) -> Order:
        return Order(self.labels, seed=0, batch_size=BATCH)

    @property
    def batches(self) -> int:
        """Of an epoch."""
        return -(-len(self) // BATCH)

    def batch(self, number: int) -> Work:
        """A micro-batch, of as many epochs as are asked for."""
        epoch, at = divmod(number, self.batches)
        positions = range(at * BATCH, min((at + 1) * BATCH, len(self)))
        order = self.order().at(epoch, np.array(positions))
        files = [self.files[index] for index in order.tolist()]
        return Work(epoch, positions.start, files, [mix(0, epoch, position, _AUGMENT) for position in positions])


def read_files(folder: Path, count: int | None) -> list[bytes]:
    """The bytes of so many images below a folder, spread over it (None: of all)."""
    names = list(images_of(folder))
    if not names:
        raise ValueError(f"--images {folder}: no images there")
    chosen = evenly(len(names), min(count or len(names), len(names)))
    return [(folder / names[index]).read_bytes() for index in chosen]


def recipe_of(name: str, changes: dict[str, Any] | None = None) -> Recipe:
    """A recipe that comes with the program, without what is done to batches on the device for the loss's sake."""
    plain = {"augment.mixup": 0, "augment.cutmix": 0, "augment.random_erasing": 0, "data.repeats": 1}
    return load_values(name, {**plain, **(changes or {})}).recipe


def levels(images: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Normalised images (N, 3, H, W) on the scale of 0 to 255 again."""
    mean, std = (torch.tensor(of).view(1, 3, 1, 1) for of in (recipe.augment.mean, recipe.augment.std))
    return (images * std + mean) * 255
