"""What `launch sweep --dry-run` says: the trials, the arrays, and what they would take."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from launch.runs.alike import changes_speed
from launch.runs.course import NONE, Span
from launch.runs.expected import UNKNOWN, Expected, by_course, device_of, find_course, in_hours, in_span, limit_of
from launch.runs.requests import Place as RunPlace
from launch.runs.requests import make_requests, submission_of
from launch.runs.send import SNAPSHOTS
from launch.runs.sizes import find_sizes
from launch.sweep.directory import AUTO, Place
from launch.sweep.points import size
from launch.sweep.sweep_types import Sweep
from launch.sweep.trials import Trial
from slurm.sbatch import Submission, expected_start, max_array_size, with_slice

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
        yield from (f"# {line}" for line in _costs(sweep, listed, number, sweep_dir, place))
    yield "# nothing was sent"


def _arrays(number: int, client: Mapping[str, str]) -> int:
    """How many arrays so many trials are; one where no Slurm answers."""
    try:
        return -(-number // max_array_size(client))
    except ValueError:
        return 1


def _costs(sweep: Sweep, listed: list[Trial], number: int, sweep_dir: Path, place: Place) -> Iterator[str]:
    """What so many trials would take, by runs beside the sweep, and when they would end."""
    assert place.profile
    first, sent, profile = listed[0].recipe, _submission(listed[0], sweep_dir, place), place.profile
    try:
        nodes = find_sizes(first, profile).nodes
        known = find_course(first, place.cluster, profile, sweep_dir.parent)
        limit = limit_of(profile, sent and sent.slice)
        found = [by_course(known, trial.recipe, profile, nodes, limit) for trial in listed] if known else []
    except ValueError as error:
        yield f"takes not known: {error}"
        return
    if not found:
        yield f"takes {UNKNOWN}"
        return
    told = "; ".join([found[0].by, *_not_counted(sweep, listed)])
    yield from _takes(found, told, number, place, _start(sent))


def _not_counted(sweep: Sweep, listed: list[Trial]) -> Iterator[str]:
    """In what the trials may take another time than they are expected to."""
    values = {key: {trial.point.get(key) for trial in listed} for key in listed[0].point}
    if keys := [key for key, texts in values.items() if len(texts) > 1 and changes_speed(key)]:
        yield f"each trial as fast as the first, though they differ in {', '.join(keys)}"
    if sweep.early_stop or any(trial.recipe.early_stopping for trial in listed):
        yield "early stopping not counted"


def _submission(trial: Trial, sweep_dir: Path, place: Place) -> Submission | None:
    """What would be sent of a trial; None where Slurm does not answer."""
    assert place.profile
    with contextlib.suppress(ValueError, OSError):
        request = make_requests(trial.recipe, [RunPlace(place.cluster, place.profile)])[0]
        sent = submission_of(sweep_dir / trial.name, trial.recipe, request, sweep_dir / SNAPSHOTS, place.cwd)
        # An array has one slice for all its trials; they ask for their own when they go on.
        return with_slice(replace(sent, slice=None))
    return None


def _start(sent: Submission | None) -> datetime | None:
    """When a trial that is sent now would start; None where Slurm does not say."""
    with contextlib.suppress(ValueError, OSError):
        return datetime.fromisoformat(expected_start(sent)) if sent else None
    return None


def _takes(found: Sequence[Expected], told: str, number: int, place: Place, start: datetime | None) -> Iterator[str]:
    """What so many trials would take, as those that are listed do on average. told: by what."""
    assert place.profile
    outlooks = [one.by_ranks[0][1] for one in found]
    each = _mean([outlook.seconds.plus(outlook.wait or NONE) for outlook in outlooks])
    all_hours = in_hours(_mean([one.device_hours for one in found]).times(number))
    yield f"{all_hours} {device_of(place.profile)}-hours, {in_span(each)} a trial ({told})"
    if start and isinstance(place.parallel, int):
        whole = each.times(math.ceil(number / place.parallel))
        ends = [f"{start + timedelta(seconds=seconds):%Y-%m-%d %H:%M}" for seconds in whole]
        between = f", between {ends[0]} and {ends[2]}" if ends[0] != ends[2] else ""
        yield f"expected start {start:%Y-%m-%d %H:%M}, end {ends[1]}{between}, where {place.parallel} always run"
    elif start:
        yield f"expected start {start:%Y-%m-%d %H:%M} of the first"


def _mean(spans: Sequence[Span]) -> Span:
    return Span(*map(statistics.fmean, zip(*spans, strict=True)))
