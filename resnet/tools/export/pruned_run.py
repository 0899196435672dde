"""A pruned network as a run of its own, beside the one that it was made of."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch

from recipes.evidence import what_differs
from recipes.load import run_recipe_text
from recipes.schema.recipe import Recipe
from resnet.build import build_data, takes_cpu
from resnet.data.sources.registry import Subset, spread
from resnet.data.sources.source import Source
from resnet.net import ResNet
from resnet.opening import device_name
from resnet.run_weights import FINAL
from resnet.rundir.evaluation import write_evaluation
from resnet.rundir.files import to_json, write_atomic
from resnet.rundir.provenance import end_attempt, provenance, read_provenance, record_attempt
from resnet.rundir.status import read_status, write_status
from resnet.tools.eval_data import THE_RECIPES, EvalData, open_eval_data
from resnet.tools.evaluate import Evaluation, evaluate
from resnet.tools.export.artefact import new_artefact, refuse_taken, write_record
from resnet.tools.export.measure import Measured, as_trained, measure, prepared, spread_over
from resnet.tools.export.prune import Pruning, check, estimate_statistics, with_zeros, without_channels, zero_share
from resnet.tools.trained import Trained
from resnet.tools.weights import load_network
from resnet.weights_file import metadata_of, read_info

STATISTICS_IMAGES = 512
"""Training images that BatchNorm's statistics are estimated on."""


class Pruned(NamedTuple):
    """What was made."""

    run_dir: Path
    measured: Measured
    evaluation: Evaluation
    zeros: float
    """Share of the convolutions' weights."""


def prune(
    trained: Trained,
    pruning: Pruning,
    name: str | None = None,
    samples: int = 10_000,
    tell: Callable[[str], object] = lambda _: None,
) -> Pruned:
    """Prune a run's network and keep it as a run beside it, whole or not at all.

    name: of the new run; None: the run's with -pruned. samples: validation images at most that both networks are given.
    tell: is called with what is begun.
    Raises ValueError for what cannot be pruned, data that cannot be used, and a name that is taken.
    """
    place = _place(trained, name)
    check(pruning, trained.recipe.model)
    network = load_network(trained.recipe, len(trained.classes) or None, trained.weights, torch.device("cpu"), tell)
    assert isinstance(network, ResNet)
    outputs = network.fc.out_features
    opened = build_data(trained.recipe)
    data = open_eval_data(trained, outputs, THE_RECIPES, opened)
    classes = data.classes
    if pruning.structured:
        network = without_channels(network, pruning)
        tell("BatchNorm's statistics are estimated anew on training images")
        estimate_statistics(network, training_batches(trained.recipe, opened[0], data))
    else:
        network = with_zeros(network, pruning.amount)
    recipe, step = _recipe_of(trained.recipe, network, place), _step_of(trained)
    with new_artefact(place, replaces=False) as folder, tempfile.TemporaryDirectory() as scratch:
        tensors = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
        (folder / FINAL).write_bytes(safetensors.torch.save(tensors, metadata_of(recipe, classes, step)))
        new = Trained(place.name, folder / FINAL, recipe, classes, None)
        subjects = [
            as_trained(Path(one.name).name, one.weights, one.recipe, outputs, Path(scratch)) for one in (trained, new)
        ]
        measured = measure(trained.recipe, spread_over(data, samples), subjects[0], subjects[1], tell)
        tell(f"{place.name} on all validation images")
        evaluation = evaluate([new], data=data)[0]
        made = Pruned(place, measured, evaluation, zero_share(network))
        _write_run(folder, trained, recipe, made, step)
        _write_record(folder, trained, recipe, classes, pruning, made)
    return made


def _run_of(trained: Trained) -> Path:
    if trained.run_dir is None:
        raise ValueError(f"{trained.weights} is in no run, which says what data it is of: give a run")
    return trained.run_dir


def _place(trained: Trained, name: str | None) -> Path:
    """Where the new run is to be."""
    run_dir = _run_of(trained)
    if run_dir.name in ("", ".."):
        run_dir = run_dir.resolve()
    if name is not None and (Path(name).name != name or name.startswith(".")):
        raise ValueError(f"--name {name}: give a name without slashes; the run will lie in {run_dir.parent}")
    place = run_dir.with_name(name or f"{run_dir.name}-pruned")
    refuse_taken(place)
    return place


def training_batches(
    recipe: Recipe, train: Source, data: EvalData, images: int = STATISTICS_IMAGES
) -> Iterator[np.ndarray]:
    """So many of the images for training, prepared as in the evaluation: float32 (N, 3, H, W), normalised."""
    # A batch of one class would vary less than any that training saw.
    order = np.random.default_rng(0).permutation(spread(train.labels, min(images, len(train))))
    chosen = Subset(train, order)
    for batch, _, _ in prepared(recipe, data._replace(source=chosen)):
        if len(batch):
            yield batch


def _step_of(trained: Trained) -> int:
    """The step of the weights."""
    info = read_info(trained.weights)
    return info.step if info else int(read_status(_run_of(trained)).get("final_step") or 0)


def _recipe_of(recipe: Recipe, network: ResNet, place: Path) -> Recipe:
    """The recipe of the new run: what its source reached is no evidence of it, and it starts from no other weights."""
    model = network.config.model_copy(update={"pretrained": None, "freeze_backbone": False, "unfreeze": {}})
    run = recipe.run.model_copy(update={"name": place.name, "root": str(place.absolute().parent)})
    # It is no trial of the sweep that its source was one of, and nor is what is made of it.
    wandb = recipe.wandb.model_copy(update={"sweep": None})
    return recipe.model_copy(update={"model": model, "run": run, "wandb": wandb, "resume": "auto", "evidence": None})


def _write_run(folder: Path, trained: Trained, recipe: Recipe, made: Pruned, step: int) -> None:
    """What programs that read runs look for."""
    source, found = _run_of(trained), made.evaluation
    plan = read_provenance(source).get("plan") or {}
    status = read_status(source)
    per_epoch = plan.get("steps_per_epoch")
    epoch = round(step / per_epoch, 4) if per_epoch else status.get("epoch") or 0.0
    device = device_name(torch.device("cpu" if takes_cpu(recipe) else "cuda"))
    information = provenance(["resnet", *sys.argv[1:]], [device], 1, plan)
    record_attempt(folder, information, step)
    end_attempt(folder, f"pruned from {trained.name}", step)
    row = {"step": step, "epoch": epoch, "time": time.time(), "val/loss": found.loss, "val/top1": found.top1}
    row |= {"val/top5": found.top5, "val/samples": found.samples}
    row |= {} if found.ece is None else {"val/ece": found.ece}
    write_atomic(folder / "metrics.jsonl", to_json(row) + "\n")
    write_evaluation(folder, vars(found), found.classes, step)
    write_status(
        folder,
        name=made.run_dir.name,
        recipe=recipe.name,
        differs=what_differs(recipe),
        state="finished",
        reason="finished",
        failure=None,
        step=step,
        total_steps=step,
        final_step=step,
        epoch=epoch,
        epochs=epoch,
        attempts=1,
        top1=found.top1,
        best=row[f"val/{recipe.eval.metric}"],
        loss=None,
    )
    write_atomic(folder / "recipe.yaml", run_recipe_text(recipe, folder / "recipe.yaml"))


def _write_record(
    folder: Path, trained: Trained, recipe: Recipe, classes: list[str], pruning: Pruning, made: Pruned
) -> None:
    settings = {**pruning._asdict(), "skip": [*pruning.skip], "zeros": made.zeros}
    settings["statistics_images"] = STATISTICS_IMAGES if pruning.structured else 0
    new = trained._replace(recipe=recipe)
    write_record(folder, new, "prune", classes, settings=settings, measured=made.measured.as_json())
