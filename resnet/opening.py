"""The beginning of an attempt: the run directory's first files, and the first lines that a person reads."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from recipes.evidence import what_differs
from recipes.load import run_recipe_text
from recipes.plan import Plan
from recipes.plugin_files import with_own_copies
from recipes.schema.model import name_of_model
from recipes.schema.recipe import Recipe
from recipes.text import plural
from recipes.unfreezing import told
from resnet.checkpoint.commit import clean
from resnet.checkpoint.resume import Start
from resnet.data.sources.registry import Splits
from resnet.data.sources.source import targets_of
from resnet.process.environment import threads_asked
from resnet.process.processes import pid_namespace
from resnet.rundir.evaluation import TEST
from resnet.rundir.files import write_atomic
from resnet.rundir.provenance import provenance, record_attempt
from resnet.rundir.status import write_status

_YEARS = 5e12
"""Pixels of a training that a CPU, at some 50,000 a millisecond, takes more than three years for."""


def open_run_dir(
    recipe: Recipe,
    start: Start,
    plan: Plan,
    images: int,
    step: int,
    accelerator: Accelerator,
    plugins: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Make the run directory this attempt's, on rank 0; returns what provenance.json says of the attempt.

    images: for training. step: the one that the attempt starts from. plugins: digests of the user's own code.
    Raises ValueError where the folder cannot be made, or is another's.
    """
    run_dir = start.run_dir
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make {run_dir} ({error.strerror}): choose another run.root") from error
    start.acquire()
    clean(run_dir / "checkpoints")
    # Of weights that this attempt's take the place of, as status.json's figure below.
    (run_dir / TEST).unlink(missing_ok=True)
    saved = with_own_copies(recipe, run_dir).model_copy(
        update={"run": recipe.run.model_copy(update={"name": run_dir.name}), "resume": start.origin or recipe.resume}
    )
    write_atomic(run_dir / "recipe.yaml", run_recipe_text(saved, run_dir / "recipe.yaml"))
    devices = [device_name(accelerator.device)] * plan.world_size
    derived = {"training_images": images, **_derived(plan, accelerator.mixed_precision), "order": start.order}
    # On CPUs their number changes the order of additions, and so the last bits.
    information = {**provenance(sys.argv, devices, plan.world_size, derived), "threads": torch.get_num_threads()}
    if plugins:
        information["plugins"] = dict(plugins)
    attempt = record_attempt(run_dir, {**information, "changed": start.changed}, step)
    write_status(
        run_dir,
        name=run_dir.name,
        recipe=recipe.name,
        differs=what_differs(recipe),
        state="running",
        step=step,
        total_steps=plan.end_step,
        epoch=plan.epoch(step),
        epochs=plan.end_epoch,
        attempts=attempt,
        failure=None,
        reason=None,
        stopped_early=None,
        test_top1=None,
        pid=os.getpid(),
        host=information["host"],
        pid_namespace=pid_namespace(),
        job_id=information["job_id"],
    )
    return {**information, "attempt": attempt}


def _derived(plan: Plan, precision: str) -> dict[str, Any]:
    """What followed from the recipe, for the report."""
    facts = {"samples_per_epoch": plan.samples, "steps_per_epoch": plan.steps_per_epoch, "total_steps": plan.end_step}
    if plan.end_step < plan.total_steps:
        facts["schedule_steps"] = plan.total_steps
    facts |= {"batch_size": plan.batch_size, "micro_batch": plan.micro_batch, "accumulation": plan.accumulation}
    if plan.recipe.model.sync_batchnorm:
        # Which binds the run to its number of ranks.
        facts["sync_batchnorm"] = True
    return facts | {"lr": plan.lr, "precision": precision}


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def first_lines(
    recipe: Recipe, plan: Plan, start: Start, splits: Splits, accelerator: Accelerator, workers: int
) -> list[str]:
    """What is trained, on what, and how."""
    what, ranks = device_name(accelerator.device), plan.world_size
    accumulated = f" in {plan.accumulation} micro-batches" if plan.accumulation > 1 else ""
    lines = [
        f"{recipe.name}: {name_of_model(recipe.model)} on {f'{ranks} x ' if ranks > 1 else ''}{what}, "
        f"precision {accelerator.mixed_precision}; run directory {start.run_dir}",
        describe_data(splits, plan),
        f"{_steps(plan)}; batch {plan.batch_size}, {plan.batch_size // ranks} per device{accumulated}; "
        f"lr {plan.lr:g}; {workers} workers per device",
    ]
    if recipe.model.unfreeze:
        lines.append(f"what trains: {told(recipe.model.unfreeze)}")
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "no" and has_bf16():
        lines.append("this CPU has instructions for bf16: precision=bf16 is faster (docs/speed.md)")
    if accelerator.device.type == "cpu" and (threads := threads_asked()):
        lines.append(f"OMP_NUM_THREADS: each rank computes on {plural(threads, 'thread')}")
    if accelerator.device.type == "cpu" and plan.end_step * plan.batch_size * plan.image_size(0) ** 2 > _YEARS:
        lines.append("no GPU: this would take years; train it where torch sees one")
    return lines


def has_bf16() -> bool:
    """Whether this CPU has instructions for bf16; without them it only imitates it, slowly."""
    # Without public names.
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


_DRAWN = {
    "none": "",
    "oversample": "; an epoch draws {} of them, so that classes are equal",
    "sqrt": "; an epoch draws {} of them, so that classes are as the square roots of their sizes",
    "shares": "; an epoch draws {} of them, by data.class_shares",
}


def describe_data(splits: Splits, plan: Plan) -> str:
    """The images and their classes, and how many of them an epoch draws where that is another number."""
    train, val, test = splits
    targets = targets_of(train)
    counts = np.bincount(train.labels, minlength=len(train.classes)) if targets is None else (targets > 0).sum(0)
    each = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    tested = "" if test is None else f"; {plural(len(test), 'test image')}"
    drawn = _DRAWN[plan.recipe.data.balance].format(plan.samples)
    return (
        f"{plural(len(train), 'training image')} of {plural(len(train.classes), 'class')} ({each} each){drawn}; "
        f"{plural(len(val), 'validation image')}{tested}"
    )


def _steps(plan: Plan) -> str:
    if plan.end_step == plan.total_steps:
        return f"{plural(plan.steps_per_epoch, 'step')} an epoch, {plan.end_step} in all"
    return (
        f"{plural(plan.steps_per_epoch, 'step')} an epoch; ends after {plan.end_step} (max_steps) "
        f"of the {plan.total_steps} that the schedule is made for"
    )
