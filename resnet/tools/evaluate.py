"""`resnet eval`: the figures of a run's weights on validation images, and the parts of that which predicting shares."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from recipes.load import load
from recipes.schema.recipe import Recipe
from resnet.build import build_accelerator, build_data
from resnet.checkpoint.snapshot import load_weights
from resnet.data.batches import Batch, MicroBatches, validation_keys
from resnet.data.loader import Loader, workers_per_rank
from resnet.data.order import Order
from resnet.data.sources.registry import Source
from resnet.inference import count_batch
from resnet.metrics import Tally
from resnet.net import build_model
from resnet.rundir.evaluation import class_names, read_evaluation
from resnet.rundir.files import to_json
from resnet.rundir.provenance import read_provenance


@torch.no_grad()
def evaluate_run(run_dir: Path, overrides: Sequence[str], weights: Path | None = None, as_json: bool = False) -> None:
    """Print top-1 and top-5 (percent), loss and the number of images, evaluated as in training.

    overrides: `a.b=value` over the run's recipe. weights: a safetensors file; default: the run's final.safetensors.
    Raises ValueError for a recipe, data or weights that cannot be used.
    """
    recipe, _, notes = load([f"recipe={run_dir / 'recipe.yaml'}", *overrides])
    for note in notes:
        print(note, file=sys.stderr)
    weights = weights or final_weights(run_dir)
    accelerator = build_accelerator(recipe)
    train, val = build_data(recipe)
    _warn_of_other_classes(run_dir, train.classes)
    network = load_network(recipe, len(train.classes), weights, accelerator.device)
    batch_size = recipe.eval.batch_size or _micro_batch(run_dir) or recipe.batch_size
    tally = Tally(len(train.classes), accelerator.device)
    for batch in batches_of(val, recipe, batch_size, accelerator.device):
        with accelerator.autocast():
            count_batch(tally, network, batch, recipe)
    result = tally.read()
    if not result["samples"]:
        raise ValueError(f"none of the {len(val)} validation images could be read")
    if as_json:
        figures = {name: result[name] for name in ("top1", "top5", "loss", "samples")}
        print(to_json(figures | {"weights": str(weights), "run": str(run_dir)}))
    else:
        print(
            f"top-1 {result['top1']:.2f}%  top-5 {result['top5']:.2f}%  loss {result['loss']:.4f}  "
            f"{result['samples']} images  {weights}"
        )


def final_weights(run_dir: Path) -> Path:
    """The weights a finished run leaves. Raises ValueError where there are none."""
    path = run_dir / "final.safetensors"
    if not path.is_file():
        raise ValueError(
            f"{run_dir} has no final.safetensors: give a finished run, or --weights with one of its checkpoints' files"
        )
    return path


def load_network(recipe: Recipe, classes: int, weights: Path, device: torch.device) -> nn.Module:
    """The recipe's network on the device, with weights from a safetensors file, to be evaluated."""
    network = build_model(recipe.model, classes)
    load_weights(network, weights)
    memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
    return network.eval().to(device=device, memory_format=memory_format)  # pyright: ignore[reportCallIssue]


def batches_of(source: Source, recipe: Recipe, batch_size: int, device: torch.device) -> Iterator[Batch]:
    """The images of a source in order, as the recipe evaluates them, decoded by worker processes ahead of use.

    Those that cannot be read are left out and named on standard error.
    """
    keys = list(validation_keys(len(source), batch_size, 1, 0, recipe.augment.val_size))
    workers = min(workers_per_rank(recipe.data.num_workers), len(keys) - 1)
    order = Order(source.labels, recipe.seed, batch_size)
    loader = Loader(MicroBatches(source, source, order, recipe.augment), keys, device, workers, recipe.data.prefetch)
    try:
        for batch in loader:
            for image in batch.broken:
                print(f"warning: cannot read {image}", file=sys.stderr)
            if len(batch.labels):
                yield batch
    finally:
        loader.end()


def _warn_of_other_classes(run_dir: Path, classes: list[str]) -> None:
    if read_evaluation(run_dir) and (known := class_names(run_dir)) != classes:
        print(
            f"warning: the run's classes have other names ({', '.join(known[:3])} ...) than the data's "
            f"({', '.join(classes[:3])} ...): the figures are right only if their order is the same",
            file=sys.stderr,
        )


def _micro_batch(run_dir: Path) -> int | None:
    """The batch the run itself evaluated in: in another one, rounding decides some close calls otherwise."""
    return read_provenance(run_dir).get("plan", {}).get("micro_batch")
