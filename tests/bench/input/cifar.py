"""CIFAR-10 at 32 px: torchvision's data set and a DataLoader beside ours, in one process."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms as v1
from torchvision.datasets import CIFAR10

from recipes.schema.recipe import Recipe
from resnet.build import build_order, share_memory
from resnet.data.batches import Key
from resnet.data.cache import DrawnBatches, fill
from resnet.data.kept import kept_batches
from resnet.data.loader import Loader
from resnet.data.sources.cifar import Cifar
from resnet.data.sources.registry import open_sources
from resnet.data.sources.source import Source
from resnet.inference import network_input
from tests.bench.input.turns import Clock, Spent, Turn
from tests.bench.input.work import recipe_of

BATCH = 128
_CPU = torch.device("cpu")


def turns(folder: Path, count: int) -> dict[str, Turn]:
    """Rows by name: a pass over so many of the images in the folder's parquet files."""
    where = {"data.source": "huggingface", "data.train": str(folder), "data.val": None, "data.val_split": "test"}
    recipe = recipe_of("cifar10_resnet18", {**where, "data.max_train": count, "data.max_val": BATCH})
    parquet, val = open_sources(recipe.data)
    arrays = _arrays(parquet)
    reference = _reference(arrays, recipe)
    uncached = recipe.model_copy(update={"data": recipe.data.model_copy(update={"cache": "none"})})
    return {
        "reference (torchvision)": _turn(reference),
        "reference again (control)": _turn(reference),
        "ours, arrays": _turn(_ours(arrays, val, recipe)),
        "ours, parquet": _turn(_ours(parquet, val, recipe)),
        "ours, parquet, data.cache=none": _turn(_ours(parquet, val, uncached)),
        "ours, data.cache=device": _turn(_cached(parquet, val, recipe)),
    }


def _turn(batches: Callable[[int], Iterator[Tensor]]) -> Turn:
    def turn(epoch: int) -> Spent:
        clock = Clock()
        return clock.spent(sum(map(len, batches(epoch))))

    return turn


def _arrays(source: Source) -> Cifar:
    """The same images as CIFAR's own archive has them, in memory."""
    images = []
    for index in range(len(source)):
        data = source.read(index)
        assert isinstance(data, bytes)
        images.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    return Cifar(np.stack(images), source.labels.tolist(), source.classes, "cifar10")


def _reference(arrays: Cifar, recipe: Recipe) -> Callable[[int], Iterator[Tensor]]:
    augment = recipe.augment
    dataset = CIFAR10.__new__(CIFAR10)  # Its constructor wants the archive.
    dataset.data, dataset.targets, dataset.target_transform = arrays._images, arrays.labels.tolist(), None
    crop, flip = v1.RandomCrop(augment.train_size, padding=augment.padding), v1.RandomHorizontalFlip(augment.hflip)
    dataset.transform = v1.Compose([crop, flip, v1.ToTensor(), v1.Normalize(augment.mean, augment.std)])
    loader = DataLoader(dataset, BATCH, shuffle=True)
    return lambda _: (images for images, _ in loader)


def _ours(source: Source, val: Source, recipe: Recipe) -> Callable[[int], Iterator[Tensor]]:
    """As training: what `data.cache` keeps in memory is read in the round that warms up."""
    memory, order = share_memory(recipe, source, val, 0), build_order(recipe, source)
    batches = kept_batches(recipe, source, val, order, _CPU, memory)
    return lambda epoch: (_input(batches[key].images, recipe) for key in _keys(len(source), epoch, recipe))


def _cached(train: Source, val: Source, recipe: Recipe) -> Callable[[int], Iterator[Tensor]]:
    *_, filled = fill(train, val, recipe.augment, lambda batches, keys: Loader(batches, keys, _CPU, 0, 2), BATCH)
    assert filled is not None
    drawn = DrawnBatches(filled.train, filled.val, build_order(recipe, train), recipe.augment)

    def batches(epoch: int) -> Iterator[Tensor]:
        found = filled.cache.look_up(drawn[key] for key in _keys(len(train), epoch, recipe))
        return (_input(batch.images, recipe) for batch in found)

    return batches


def _input(images: Tensor, recipe: Recipe) -> Tensor:
    return network_input(images, recipe, _CPU, torch.float32)


def _keys(count: int, epoch: int, recipe: Recipe) -> Iterator[Key]:
    for start in range(0, count, BATCH):
        yield Key(epoch, start, min(start + BATCH, count), recipe.augment.train_size)
