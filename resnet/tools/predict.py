"""`resnet predict`: images without labels, classified by a run's weights into a CSV file."""

from __future__ import annotations

import csv as csv_format
import io
import os
import sys
from pathlib import Path

import numpy as np
import torch

from recipes.load import load_file
from recipes.schema.recipe import Recipe
from resnet.build import choose_precision
from resnet.data.sources.files import Files
from resnet.data.sources.image_folder import EXTENSIONS, images_below
from resnet.inference import predict_logits
from resnet.rundir.evaluation import class_names
from resnet.rundir.files import write_atomic
from resnet.tools.evaluate import batches_of, final_weights, load_network

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def predict_folder(
    run_dir: Path,
    folder: Path,
    csv: Path | None = None,
    batch_size: int = 64,
    device: str = "auto",
    weights: Path | None = None,
) -> None:
    """Write a row `file,label,probability` for each image below `folder` (or for that one file), in sorted order.

    Each image is classified as in the recipe's evaluation; one that cannot be read has an empty label.
    csv: the file to write; None: standard output. batch_size: images of a forward pass. device: auto, cpu, cuda or
    cuda:N. weights: a safetensors file; None: the run's final.safetensors.
    Raises ValueError where there is nothing to predict, or nothing to predict with.
    """
    if batch_size < 1:
        raise ValueError(f"--batch-size {batch_size}: it takes 1 image or more")
    if csv is not None:
        _check_writable(csv)
    root, names = _images(folder)
    classes = class_names(run_dir)
    # The index of an image in place of a label tells which ones a batch holds.
    files = Files(root, names, np.arange(len(names)), classes)
    recipe = load_file(run_dir / "recipe.yaml").recipe
    predictions = _predict(recipe, files, weights or final_weights(run_dir), batch_size, _device(device))
    text = io.StringIO()
    writer = csv_format.writer(text, lineterminator="\n")
    writer.writerow(("file", "label", "probability"))
    for index, name in enumerate(names):
        label, probability = predictions.get(index, (None, 0.0))
        writer.writerow((name, "", "") if label is None else (name, classes[label], f"{probability:.6f}"))
    # A file's name is bytes, which need not be text.
    content = text.getvalue().encode("utf-8", "surrogateescape")
    if csv is None:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    else:
        write_atomic(csv, content)
    broken = len(names) - len(predictions)
    note = f"; {broken} could not be read and have no label" if broken else ""
    print(f"{len(names)} images{f' in {csv}' if csv else ''}{note}", file=sys.stderr)


@torch.inference_mode()
def _predict(
    recipe: Recipe, files: Files, weights: Path, batch_size: int, device: torch.device
) -> dict[int, tuple[int, float]]:
    """Class and probability of each image that can be read, by its index."""
    network = load_network(recipe, len(files.classes), weights, device)
    on_gpu = device.type == "cuda"
    dtype = _AUTOCAST.get(choose_precision(recipe, on_cpu=False)) if on_gpu else None
    predictions = {}
    for batch in batches_of(files, recipe, batch_size, device):
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits = predict_logits(network, batch.images, recipe, device)
        # A network trained with BCE has learnt a probability for each class on its own.
        scores = logits.sigmoid() if recipe.loss == "bce" else logits.softmax(1)
        best, labels = scores.max(1)
        predictions |= zip(batch.labels.tolist(), zip(labels.tolist(), best.tolist(), strict=True), strict=True)
    return predictions


def _images(path: Path) -> tuple[Path, list[str]]:
    """A folder and the names, from it on, of the images in it and below."""
    if path.is_file():
        return path.parent, [path.name]
    if not path.is_dir():
        raise ValueError(f"there is no {path}: give a folder of images, or an image")
    names = sorted(os.path.normpath(name) for name in images_below(path, "."))
    if not names:
        raise ValueError(f"no images in {path} (files that end in {', '.join(EXTENSIONS)})")
    return path, names


def _device(text: str) -> torch.device:
    count = torch.cuda.device_count()
    if text == "auto":
        text = "cuda" if count else "cpu"
    try:
        device = torch.device(text)
    except RuntimeError:
        raise ValueError(f"--device {text} is none of auto, cpu, cuda and cuda:N") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ValueError(f"--device {text} is none of auto, cpu, cuda and cuda:N")
    device = torch.device("cuda", device.index or 0)
    if device.index >= count:
        raise ValueError(f"--device {text}: torch finds {count or 'no'} GPUs here")
    torch.cuda.set_device(device)
    return device


def _check_writable(csv: Path) -> None:
    """Raises ValueError now rather than after an hour of predicting."""
    if csv.is_dir():
        raise ValueError(f"--csv {csv} is a folder: give a file")
    if not csv.absolute().parent.is_dir():
        raise ValueError(f"--csv {csv}: there is no folder {csv.absolute().parent}")
