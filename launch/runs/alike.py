"""Which runs have trained the same on the same devices, and so tell what another would take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.runs.job_record import Job, known_keys, read_job
from recipes.changes import differences
from recipes.load import load_file
from recipes.schema.recipe import Recipe
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
