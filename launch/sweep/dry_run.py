"""What `launch sweep --dry-run` says: the trials, the arrays, and what they would take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch.sweep.directory import AUTO, Place
from launch.sweep.points import size
from launch.sweep.sweep_types import Sweep
from launch.sweep.trials import Trial
from recipes.load import load
from recipes.schema.recipe import Recipe
from recipes.text import format_duration
from resnet.rundir.provenance import read_provenance
from resnet.rundir.status import read_status
from slurm.sbatch import max_array_size

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
    yield f"# {_hours(listed[0].recipe, sweep_dir.parent, number)}"
    yield "# nothing was sent"


def _arrays(number: int, client: Mapping[str, str]) -> int:
    """How many arrays so many trials are; one where no Slurm answers."""
    try:
        return -(-number // max_array_size(client))
    except ValueError:
        return 1


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
