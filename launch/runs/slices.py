"""The slice that a run with slurm.time=auto asks for when it is sent."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from launch.runs.alike import runs_alike
from launch.runs.expected import expected
from recipes.schema.recipe import Recipe
from slurm.measured import left_seconds, took
from slurm.profile import Profile
from slurm.room import planned_starts
from slurm.sbatch import partition_of
from slurm.slices import Slice, Took, hole, slice_of

START_SECONDS = 60.0
"""Until a job that is sent now may start on nodes that are free."""


def slice_for(recipe: Recipe, cluster: str, profile: Profile, run_dir: Path) -> Slice | None:
    """What is asked for; None where slurm.time is fixed. Raises SlurmError where Slurm does not answer."""
    if not profile.is_sliced:
        return None
    room = partition_of(profile)
    free = None
    if room.idle >= profile.least_nodes:
        free = hole(_planned(profile), time.time(), START_SECONDS)
    alike = [run for run, _ in runs_alike(recipe, cluster, profile, run_dir.parent)]
    # By the run's own attempts, as its batch script asks for the slices to come; of a new run by others.
    need = left_seconds(run_dir, profile.least_nodes)
    if need is None and (found := expected(recipe, cluster, profile, run_dir.parent, [profile.least_nodes], None)):
        need = found.by_ranks[0][1].seconds.likely
    return slice_of(room.limit, need, _took([run_dir, *alike]), profile.signal_lead, free, profile.least_lead)


def described(slice: Slice) -> str:
    """In a line."""
    span = f"{slice.least} to {slice.most} minutes" if slice.least < slice.most else f"{slice.most} minutes"
    return f"{span} each, told to save {slice.lead} s before the end"


def _planned(profile: Profile) -> list[float]:
    try:
        return planned_starts(profile.partition, client=profile.client)
    except ValueError:
        return []


def _took(runs: Sequence[Path]) -> Took:
    """Of the first run that has shown it."""
    known = [took(run) for run in runs]
    start = next((one.start for one in known if one.start is not None), None)
    return Took(start, next((one.stop for one in known if one.stop is not None), None), known[0].vain)
