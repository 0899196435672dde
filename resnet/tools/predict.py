"""`resnet predict`: images without labels, classified by a run's weights."""

from __future__ import annotations

import csv as csv_format
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from recipes.load import load_file
from recipes.schema.recipe import Recipe
from resnet.build import choose_precision
from resnet.data.batches import Batch
from resnet.data.sources.files import Files
from resnet.data.sources.image_folder import EXTENSIONS, images_below
from resnet.inference import class_probabilities, predict_logits
from resnet.rundir.evaluation import class_names
from resnet.tools.trained import weights_of
from resnet.tools.weights import autocast, batches_of, load_network, own_settings


class Prediction(NamedTuple):
    """What a network sees in an image."""

    file: str
    label: str | None
    """The likeliest class; None where the image cannot be read."""
    probability: float
    top: tuple[tuple[str, float], ...] = ()
    """The likeliest classes and their probabilities, the first first."""
    problem: str | None = None
    """Why the image cannot be read."""


def predict(
    run_dir: Path,
    files: list[str],
    top: int = 1,
    batch_size: int = 64,
    device: str = "auto",
    weights: Path | None = None,
) -> list[Prediction]:
    """Classify image files as in the recipe's evaluation; one prediction each, in their order.

    top: classes of each prediction. batch_size: images of a forward pass. device: auto, cpu, cuda or cuda:N.
    weights: a safetensors file; None: the run's final.safetensors. Raises ValueError where they cannot be used.
    """
    if batch_size < 1 or top < 1:
        raise ValueError(f"batch_size={batch_size}, top={top}: both take 1 or more")
    classes = class_names(run_dir)
    recipe = load_file(run_dir / "recipe.yaml").recipe
    chosen = _device(device)
    weights = weights or weights_of(run_dir)
    with own_settings(recipe, chosen):
        found = _predict(recipe, files, classes, weights, min(top, len(classes)), batch_size, chosen)
    return [found[index] for index in range(len(files))]


@torch.inference_mode()
def _predict(
    recipe: Recipe,
    files: list[str],
    classes: list[str],
    weights: Path,
    top: int,
    batch_size: int,
    device: torch.device,
) -> dict[int, Prediction]:
    """Predictions by the index of the file."""
    # The index of an image in place of a label tells which ones a batch holds.
    source = Files(Path(), files, np.arange(len(files)), classes)
    network = load_network(recipe, len(classes), weights, device)
    precision = choose_precision(recipe, on_cpu=False) if device.type == "cuda" else "no"
    found = {}
    for batch in batches_of(source, recipe, batch_size, device):
        for index, problem in _unreadable(batch):
            reason = problem.removeprefix(f"{source.describe(index)}: ")
            found[index] = Prediction(files[index], None, 0.0, problem=reason)
        if not len(batch.labels):
            continue
        with autocast(precision, device):
            logits = predict_logits(network, batch.images, recipe, device)
        scores = class_probabilities(logits, recipe)
        best, labels = (tensor.tolist() for tensor in scores.topk(top))
        for index, probabilities, numbers in zip(batch.labels.tolist(), best, labels, strict=True):
            ranked = tuple((classes[number], value) for number, value in zip(numbers, probabilities, strict=True))
            found[index] = Prediction(files[index], ranked[0][0], ranked[0][1], ranked)
    return found


def _unreadable(batch: Batch) -> Iterator[tuple[int, str]]:
    """Index of each image that the batch lacks, and the reason."""
    missing = sorted(set(range(batch.key.start, batch.key.stop)) - set(batch.labels.tolist()))
    return zip(missing, batch.broken, strict=True)


def images_of(paths: Iterable[str | Path]) -> list[str]:
    """The image files that paths name: files as they are, and sorted those in a folder and below.

    Raises ValueError for a path that is not there, and a folder without images.
    """
    return [file for path in paths for file in _images(Path(path).expanduser())]


def _images(path: Path) -> list[str]:
    if path.is_file():
        return [str(path)]
    if not path.is_dir():
        raise ValueError(f"there is no {path}: give a folder of images, or an image")
    names = sorted(os.path.normpath(name) for name in images_below(path, "."))
    if not names:
        raise ValueError(f"no images in {path} (files that end in {', '.join(EXTENSIONS)})")
    return [os.path.join(path, name) for name in names]


def to_csv(predictions: Iterable[Prediction], root: Path) -> bytes:
    """Rows `file,label,probability` under a header; files from `root` on, an empty label for what cannot be read."""
    text = io.StringIO()
    writer = csv_format.writer(text, lineterminator="\n")
    writer.writerow(("file", "label", "probability"))
    for prediction in predictions:
        name = os.path.relpath(prediction.file, root)
        unread = prediction.label is None
        writer.writerow((name, "", "") if unread else (name, prediction.label, f"{prediction.probability:.6f}"))
    # A file's name is bytes, which need not be text.
    return text.getvalue().encode("utf-8", "surrogateescape")


def check_writable(csv: Path) -> None:
    """Raise ValueError now rather than after an hour of predicting."""
    if csv.is_dir():
        raise ValueError(f"--csv {csv} is a folder: give a file")
    if not csv.absolute().parent.is_dir():
        raise ValueError(f"--csv {csv}: there is no folder {csv.absolute().parent}")


def _device(text: str) -> torch.device:
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
