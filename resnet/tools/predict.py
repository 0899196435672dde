"""`resnet predict`: images, labelled or not, classified by trained weights."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch

from resnet.data import imagenet
from resnet.data.bands import visible
from resnet.data.batches import read_image
from resnet.data.sources.banded import of_channels
from resnet.data.sources.given import Given
from resnet.data.sources.registry import evenly
from resnet.data.transforms import eval_transform
from resnet.inference import class_probabilities, predict_logits
from resnet.tools.forward import Forwarded, choose_device, forward
from resnet.tools.picture_grid import Tile
from resnet.tools.trained import Trained
from resnet.tools.weights import load_network
from resnet.trained_network import outputs_of
from resnet.weights_file import read_weights


class Prediction(NamedTuple):
    """What a network sees in an image."""

    file: str
    """The image's path, or its row."""
    label: str | None
    """The likeliest class; None where the image cannot be read."""
    probability: float
    top: tuple[tuple[str, float], ...] = ()
    """The likeliest classes and their probabilities, the first first."""
    problem: str | None = None
    """Why the image cannot be read."""
    id: str = ""
    """What the user calls it: its path from the given folder on, or its text in a list."""
    number: int | None = None
    """The number of the likeliest class, from 0."""
    true: str | None = None
    """The image's own label, where the data has some of the network's classes."""
    numbers: tuple[int, ...] = ()
    """The numbers of the classes in `top`."""


def named(trained: Trained) -> Trained:
    """With names for the network's outputs also where the weights have none: ImageNet-1k's, or numbers."""
    if trained.classes:
        return trained
    outputs = outputs_of(read_weights(trained.weights), trained.weights)
    if outputs == imagenet.CLASSES and trained.run_dir is None:
        note = "1,000 outputs and no names: ImageNet-1k's are taken, in torchvision's order"
        return trained._replace(classes=imagenet.names(), notes=(*trained.notes, note))
    return trained._replace(classes=[str(number) for number in range(outputs)])


def predictions(
    trained: Trained, source: Given, top: int = 1, batch_size: int = 64, device: str = "auto"
) -> Generator[Prediction, None, None]:
    """Classify images as in the recipe's evaluation: one prediction each, in their order, made as they are asked for.

    trained: `named`. source: opened with its classes. top: classes of each prediction. batch_size: images of a forward
    pass. device: auto, cpu, cuda or cuda:N. Raises ValueError, before the first one, for weights that cannot be used.
    """
    if batch_size < 1 or top < 1:
        raise ValueError(f"batch_size={batch_size}, top={top}: both take 1 or more")
    classes, recipe, chosen = trained.classes, trained.recipe, choose_device(device)
    network, top = load_network(recipe, len(classes), trained.weights, chosen), min(top, len(classes))
    if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
        raise ValueError(f"{trained.weights} is broken: some of its weights are nan or infinite")

    def ranked(images: torch.Tensor) -> torch.Tensor:
        """Probabilities and numbers of the likeliest classes, (N, 2, top) float64."""
        best, numbers = class_probabilities(predict_logits(network, images, recipe, chosen), recipe).topk(top)
        return torch.stack((best.double(), numbers.double()), 1)

    return _of_batches(forward(source, recipe, batch_size, chosen, ranked), source, classes)


def _of_batches(
    batches: Generator[Forwarded, None, None], source: Given, classes: list[str]
) -> Generator[Prediction, None, None]:
    # Folders none of which is called like a class say nothing of what is in them.
    labelled = bool((source.labels >= 0).any())
    with contextlib.closing(batches):
        for batch in batches:
            yield from _of_batch(batch, source, classes, labelled)


def _of_batch(batch: Forwarded, source: Given, classes: list[str], labelled: bool) -> Iterator[Prediction]:
    rows = dict(zip(batch.indices, batch.outputs.tolist(), strict=True)) if batch.outputs is not None else {}
    for index in range(batch.start, batch.stop):
        file, name, true = source.describe(index), source.ids[index], source.label_name(index) if labelled else None
        if index not in rows:
            yield Prediction(file, None, 0.0, (), batch.problems[index], name, None, true)
            continue
        numbers = tuple(map(int, rows[index][1]))
        found = tuple((classes[number], value) for number, value in zip(numbers, rows[index][0], strict=True))
        yield Prediction(file, *found[0], found, None, name, numbers[0], true, numbers)


def spread_over(total: int, most: int) -> set[int]:
    """At most so many of `total` indices, at even distances."""
    return set(evenly(total, min(total, most)).tolist())


def tiles_of(found: Mapping[int, Prediction], source: Given, trained: Trained) -> list[Tile]:
    """A picture each, as the network was given it, of the predictions by index: a bar for each of the top classes, and
    whether it is right where the image's label is known."""
    transform, known, tiles = eval_transform(trained.recipe.augment), set(trained.classes), []
    images = of_channels(source, trained.recipe.model.in_channels, trained.recipe.data.pixel_max)
    for index, prediction in sorted(found.items()):
        if prediction.label is None:
            problem = prediction.problem or ""
            tiles.append(Tile(np.full((8, 8, 3), 229, dtype=np.uint8), (prediction.id, f"cannot be read: {problem}")))
            continue
        image = transform(read_image(images, index))
        right = prediction.true == prediction.label if prediction.true in known else None
        caption = (prediction.id, *(() if prediction.true is None else (f"is {prediction.true}",)))
        tiles.append(Tile(visible(image.permute(1, 2, 0).numpy()), caption, prediction.top, right))
    return tiles
