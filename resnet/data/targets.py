"""Several labels an image: from the rows of a source's `targets` to those of a batch.

A batch's labels go through loaders, caches and memory that ranks share as one number an image. Where a source has
`targets`, that number is the image's row, and the targets are looked up where the batch is used.
"""

from __future__ import annotations

import numpy as np
import torch

from recipes.schema.recipe import Recipe
from resnet.data.batches import Batch
from resnet.data.sources.registry import Subset
from resnet.data.sources.source import Source, targets_of


class _Rows(Subset):
    """A source whose labels are its rows."""

    def __init__(self, source: Source) -> None:
        super().__init__(source, np.arange(len(source)))
        self.labels = np.arange(len(source))


def in_rows(source: Source) -> Source:
    """The source to make batches of, where `Targets` is to look them up."""
    return source if targets_of(source) is None else _Rows(source)


class Targets:
    """The targets of all images, on the device."""

    def __init__(self, train: Source, val: Source, device: torch.device) -> None:
        self._train, self._val = (
            None if (table := targets_of(source)) is None else torch.from_numpy(table).to(device)
            for source in (train, val)
        )

    def look_up(self, batch: Batch) -> Batch:
        """A batch of `in_rows` with its targets, and the first label of each image."""
        table = self._val if batch.key.epoch is None else self._train
        if table is None:
            return batch
        targets = table[batch.labels.to(table.device)]
        return batch._replace(labels=targets.argmax(1), targets=targets)


def check_targets(recipe: Recipe, train: Source, val: Source) -> None:
    """Raise ValueError for keys that several labels an image have no use for."""
    if targets_of(train) is None and targets_of(val) is None:
        return
    if recipe.loss != "bce" and recipe.plugins.loss is None:
        raise ValueError(f"the images have several labels, and loss={recipe.loss} is for one each: set loss=bce")
    wrong = {
        "label_smoothing": recipe.label_smoothing != 0,
        "data.balance": recipe.data.balance != "none",
        "class_weights": recipe.class_weights is not None,
        "distill": recipe.distill is not None,
    }
    if given := [key for key, is_wrong in wrong.items() if is_wrong]:
        raise ValueError(f"the images have several labels, for which {', '.join(given)} has no meaning: leave it out")
