"""What `launch sweep --dry-run` says: the trials, the arrays, and what they would take."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from launch.runs.course import NONE
from launch.runs.expected import Expected, attempt_time, expected, in_hours, in_span
from launch.runs.requests import Place as RunPlace
from launch.runs.requests import make_requests, submission_of
from launch.runs.send import SNAPSHOTS
from launch.runs.sizes import find_sizes
from launch.sweep.directory import AUTO, Place
from launch.sweep.points import size
from launch.sweep.sweep_types import Sweep
from launch.sweep.trials import Trial
from recipes.load import load
from recipes.schema.recipe import Recipe
from recipes.text import format_duration
from resnet.rundir.provenance import read_provenance
from resnet.rundir.status import read_status
from slurm.sbatch import expected_start, max_array_size

LISTED = 20
"""Trials that are listed at each end."""


def dry_run(sweep: Sweep, listed: list[Trial], count: int | None, sweep_dir: Path, place: Place) -> Iterator[str]:
    """The lines that are printed; count: trials of a search that chooses its points as it goes."""
    if count is None:
        for number, trial in enumerate(listed):
            if number < LISTED or number >= len(listed) - LISTED:
                yield f"{number:5}  {trial.name:40}  {' '.join(f'{key}={text}' for key, text in trial.point.items())}"
            elif number == LISTED:
                yield f"       ... {len(listed) - 2 * LISTED} more"
    number = count or len(listed)
    what = f"{number} trials, {sweep.method}"
    if sweep.method == "grid" and sweep.run_cap and sweep.run_cap < size(replace(sweep, run_cap=None)):
        what += " (cut by run_cap)"
    yield f"# {what}; sweep directory {sweep_dir}"
    if place.profile is not None:
        parts = _arrays(number, place.profile.client)
        at_once = "as many at once as fit on what is idle" if place.parallel == AUTO else f"{place.parallel} at once"
        limit = f", {at_once}" if place.parallel else ""
        arrays = f"{parts} array{'s' if parts > 1 else ''} on {place.cluster}{limit}"
        yield f"# {arrays}; {place.profile.ranks} ranks a trial"
    found = _expected(listed[0].recipe, sweep_dir, place)
    if found is None:
        yield f"# {_hours(listed[0].recipe, sweep_dir.parent, number)}"
    else:
        yield from (f"# {line}" for line in _takes(found, listed, number, place, _start(listed[0], sweep_dir, place)))
    yield "# nothing was sent"


def _arrays(number: int, client: Mapping[str, str]) -> int:
    """How many arrays so many trials are; one where no Slurm answers."""
    try:
        return -(-number // max_array_size(client))
    except ValueError:
        return 1


def _expected(recipe: Recipe, sweep_dir: Path, place: Place) -> Expected | None:
    """What the first trial would take, by runs beside the sweep."""
    if (profile := place.profile) is None:
        return None
    try:
        nodes = find_sizes(recipe, profile).nodes
        return expected(recipe, place.cluster, profile, sweep_dir.parent, nodes, attempt_time(profile))
    except ValueError:
        return None


def _start(trial: Trial, sweep_dir: Path, place: Place) -> datetime | None:
    """When a trial that is sent now would start; None where Slurm does not say."""
    assert place.profile
    run_dir, snapshot = sweep_dir / trial.name, sweep_dir / SNAPSHOTS
    with contextlib.suppress(ValueError, OSError):
        request = make_requests(trial.recipe, [RunPlace(place.cluster, place.profile)])[0]
        sent = submission_of(run_dir, trial.recipe, request, snapshot, place.cwd)
        return datetime.fromisoformat(expected_start(sent))
    return None


def _takes(found: Expected, listed: list[Trial], number: int, place: Place, start: datetime | None) -> Iterator[str]:
    """What so many trials would take: each as the first one, for its own epochs."""
    assert place.profile
    mean = statistics.fmean(trial.recipe.epochs for trial in listed) / listed[0].recipe.epochs
    outlook, device = found.by_ranks[0][1], "GPU" if place.profile.gpus_per_node else "rank"
    each = outlook.seconds.plus(outlook.wait or NONE).times(mean)
    all_hours = in_hours(found.device_hours.times(mean * number))
    yield f"{all_hours} {device}-hours, {in_span(each)} a trial ({found.by})"
    if start and isinstance(place.parallel, int):
        whole = each.times(math.ceil(number / place.parallel))
        ends = [f"{start + timedelta(seconds=seconds):%Y-%m-%d %H:%M}" for seconds in whole]
        between = f", between {ends[0]} and {ends[2]}" if ends[0] != ends[2] else ""
        yield f"expected start {start:%Y-%m-%d %H:%M}, end {ends[1]}{between}, where {place.parallel} always run"
    elif start:
        yield f"expected start {start:%Y-%m-%d %H:%M} of the first"


def _hours(recipe: Recipe, root: Path, number: int) -> str:
    """What so many trials would take, by the newest finished run of the recipe."""
    best: tuple[float, Path] | None = None
    for file in [*root.glob("*/status.json"), *root.glob("*/*/status.json")]:
        try:
            status: dict[str, Any] = read_status(file.parent)
        except ValueError:
            continue
        if status.get("state") == "finished" and (best is None or status["updated"] > best[0]):
            path = file.parent / "recipe.yaml"
            if path.is_file() and load([f"recipe={path}"]).recipe.name == recipe.name:
                best = status["updated"], file.parent
    if best is None:
        return "GPU-hours: unknown before a run of the recipe has finished"
    attempts = read_provenance(best[1]).get("attempts", [])
    seconds = sum((a["end"] - a["start"]) * a["world_size"] for a in attempts if a["end"])
    epochs = read_status(best[1]).get("epoch") or recipe.epochs
    each = seconds * recipe.epochs / epochs
    return (
        f"GPU-hours: about {each * number / 3600:.2g}, {format_duration(each)} of one a trial (as {best[1].name} took)"
    )
