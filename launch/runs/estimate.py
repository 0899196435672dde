"""What a run would take, by what runs of the same training on the same devices have shown."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from launch.runs.job_record import Job, known_keys, read_job
from recipes.changes import differences
from recipes.load import load_file
from recipes.schema.recipe import Recipe
from recipes.text import format_duration, plural
from resnet.rundir.files import number
from resnet.rundir.find import runs_in
from resnet.rundir.status import status_or_nothing
from slurm.profile import Profile

_SAME_SPEED = (
    *("optimizer", "schedule", "epochs", "seed", "checkpoint", "eval", "label_smoothing", "max_steps", "ema", "swa"),
    *("early_stopping", "data.train", "data.val", "data.test", "plugins.metrics", "plugins.callbacks"),
)
"""Keys (and groups) beside those that are no training, by which runs may differ that are as fast."""
_SAME_PLACE = ("gpu_type", "constraint", "partition", "gpus_per_node", "ranks_per_node", "nodes", "cpus_per_rank")
_READ = 20
"""Runs whose recipes are read, the newest first."""


class Speed(NamedTuple):
    """What runs have shown."""

    images_per_second: float
    """Over all ranks."""
    steps_per_epoch: float
    by: str
    """Which runs, in words."""


def shown_by_runs(recipe: Recipe, cluster: str, profile: Profile, root: Path) -> Speed | None:
    """The median speed of runs below a folder that train the same on as many and the same devices; None without any."""
    alike = [status for _, status in runs_alike(recipe, cluster, profile, root)]
    if not alike:
        return None
    rate = statistics.median(status["images_per_second"] for status in alike)
    finished = sum(status.get("state") == "finished" for status in alike)
    which = f"{plural(len(alike), 'run')}, {finished} of them finished" if finished else plural(len(alike), "run")
    return Speed(rate, alike[0]["total_steps"] / alike[0]["epochs"], f"by {which}: {rate:,.0f} img/s")


def runs_alike(recipe: Recipe, cluster: str, profile: Profile, root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The newest runs below a folder that train the same on as many and the same devices, each with its status."""
    found = [(run, status_or_nothing(run)) for run in runs_in(root)] if root.is_dir() else []
    found = [(run, status) for run, status in found if status.get("recipe") == recipe.name and _has_shown(status)]
    found.sort(key=lambda pair: -(number(pair[1].get("updated")) or 0))
    read = 0
    for run, status in found:
        job = None
        with contextlib.suppress(ValueError, OSError):
            job = read_job(run)
        if job is None or read == _READ or not _same_place(job, cluster, profile):
            continue
        read += 1
        with contextlib.suppress(ValueError, OSError):
            if not any(changes_speed(key) for key in differences(load_file(run / "recipe.yaml").recipe, recipe)):
                yield run, status


def _has_shown(status: dict[str, Any]) -> bool:
    return all(number(status.get(key)) for key in ("images_per_second", "total_steps", "epochs"))


def _same_place(job: Job, cluster: str, profile: Profile) -> bool:
    # One that waited in several places has what was asked for beside what each job was given.
    sent = [(job.cluster, job.profile), *((one["cluster"], one["profile"]) for one in job.asked)]
    return any(name == cluster and _same_devices(Profile(**known_keys(before)), profile) for name, before in sent)


def _same_devices(before: Profile, profile: Profile) -> bool:
    return all(getattr(before, key) == getattr(profile, key) for key in _SAME_PLACE)


def changes_speed(key: str) -> bool:
    """Whether runs that differ in a key of the recipe may be faster or slower."""
    return not any(key == name or key.startswith(f"{name}.") for name in _SAME_SPEED)


def told(recipe: Recipe, profile: Profile, speed: Speed) -> tuple[str, float]:
    """What the run would take, in a line, and its seconds without waiting in the queue."""
    steps = speed.steps_per_epoch * recipe.epochs
    if recipe.max_steps:
        steps = min(steps, recipe.max_steps)
    seconds = steps * recipe.batch_size / speed.images_per_second
    device = "GPU" if profile.gpus_per_node else "rank"
    devices = plural(profile.ranks, device)
    hours = f"about {seconds * profile.ranks / 3600:.2g} {device}-hours, {format_duration(seconds)} of {devices}"
    return f"{hours} ({speed.by}; evaluations and starts come on top)", seconds
