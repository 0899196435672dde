"""Which runs have trained the same on the same devices, and so tell what another would take."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.runs.job_record import Job, known_keys, read_job
from launch.runs.read_once import once
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
    of_name = ((run, status) for run, status in once(_have_shown, root) if status.get("recipe") == recipe.name)
    there = ((run, status) for run, status in of_name if _same_place(once(_job, run), cluster, profile))
    for run, status in itertools.islice(there, _READ):
        before = once(_recipe, run)
        if before and not any(changes_speed(key) for key in differences(before, recipe)):
            yield run, status


def _have_shown(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The runs below a folder that tell their speed, each with its status, the newest first."""
    found = [(run, status_or_nothing(run)) for run in runs_in(root)] if root.is_dir() else []
    found = [(run, status) for run, status in found if _has_shown(status)]
    return sorted(found, key=lambda pair: -(number(pair[1].get("updated")) or 0))


def _job(run: Path) -> Job | None:
    with contextlib.suppress(ValueError, OSError):
        return read_job(run)
    return None


def _recipe(run: Path) -> Recipe | None:
    with contextlib.suppress(ValueError, OSError):
        return load_file(run / "recipe.yaml").recipe
    return None


def _has_shown(status: dict[str, Any]) -> bool:
    return all(number(status.get(key)) for key in ("images_per_second", "total_steps", "epochs"))


def _same_place(job: Job | None, cluster: str, profile: Profile) -> bool:
    if job is None:
        return False
    # One that waited in several places has what was asked for beside what each job was given.
    sent = [(job.cluster, job.profile), *((one["cluster"], one["profile"]) for one in job.asked)]
    return any(name == cluster and _same_devices(before, profile) for name, before in sent)


def _same_devices(before: dict[str, Any], profile: Profile) -> bool:
    with contextlib.suppress(ValueError):
        known = Profile(**known_keys(before))
        return all(getattr(known, key) == getattr(profile, key) for key in _SAME_PLACE)
    # Of another version, which took what this one does not.
    return False


def changes_speed(key: str) -> bool:
    """Whether runs that differ in a key of the recipe may be faster or slower."""
    return not any(key == name or key.startswith(f"{name}.") for name in _SAME_SPEED)
