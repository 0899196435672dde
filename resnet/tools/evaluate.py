"""`resnet eval`: the figures of a run's weights on validation images."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from recipes.schema.recipe import Recipe
from resnet.build import build_data, choose_precision, takes_cpu
from resnet.inference import count_batch
from resnet.rundir.evaluation import class_names, read_evaluation
from resnet.rundir.provenance import read_provenance
from resnet.tally import Tally
from resnet.tools.trained import weights_of
from resnet.tools.weights import autocast, batches_of, load_network, own_settings


class Evaluation(NamedTuple):
    """What weights reach on validation images."""

    top1: float
    """Percent, 0-100."""
    top5: float
    loss: float
    samples: int
    """Images that could be read."""
    weights: Path
    run: Path
    warnings: tuple[str, ...] = ()
    """Images that could not be read, and what else makes the figures doubtful."""


@torch.no_grad()
def evaluate(run_dir: Path, recipe: Recipe, weights: Path | None = None) -> Evaluation:
    """Evaluate weights as in training, and leave the process as it was.

    recipe: the run's, changed or not. weights: a safetensors file; None: the run's final.safetensors.
    Raises ValueError for a recipe, data or weights that cannot be used.
    """
    weights = weights or weights_of(run_dir)
    on_cpu = takes_cpu(recipe)
    device = torch.device("cpu") if on_cpu else torch.device("cuda", torch.cuda.current_device())
    precision = choose_precision(recipe, on_cpu)
    train, val = build_data(recipe)
    warnings = _other_classes(run_dir, train.classes)
    with own_settings(recipe, device):
        network = load_network(recipe, len(train.classes), weights, device)
        batch_size = recipe.eval.batch_size or _micro_batch(run_dir) or recipe.batch_size
        tally = Tally(len(train.classes), device)
        for batch in batches_of(val, recipe, batch_size, device):
            warnings += [f"cannot read {image}" for image in batch.broken]
            if len(batch.labels):
                with autocast(precision, device):
                    count_batch(tally, network, batch, recipe)
        result = tally.read()
    if not result["samples"]:
        raise ValueError(f"none of the {len(val)} validation images could be read")
    figures = {name: result[name] for name in ("top1", "top5", "loss", "samples")}
    return Evaluation(**figures, weights=weights, run=run_dir, warnings=tuple(warnings))


def _other_classes(run_dir: Path, classes: list[str]) -> list[str]:
    if read_evaluation(run_dir) and (known := class_names(run_dir)) != classes:
        return [
            f"the run's classes have other names ({', '.join(known[:3])} ...) than the data's "
            f"({', '.join(classes[:3])} ...): the figures are right only if their order is the same"
        ]
    return []


def _micro_batch(run_dir: Path) -> int | None:
    """The batch the run itself evaluated in: in another one, rounding decides some close calls otherwise."""
    return read_provenance(run_dir).get("plan", {}).get("micro_batch")
