"""What a run has cost so far, what it is to cost in all, and when it is to end."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from launch.runs.course import NONE, Limit, Outlook, Span, outlook, overhead, rates_of, span_of
from launch.runs.expected import NOT_COUNTED, expected, in_span, leaves_idle, limit_of
from launch.runs.job_record import Job, read_job
from launch.runs.sizes import find_sizes
from recipes.load import load_file
from recipes.text import format_duration
from resnet.rundir.attempts import newest_step
from resnet.rundir.files import read_json
from resnet.rundir.provenance import read_provenance
from resnet.rundir.spent import Spent, hours, share, spent
from slurm.profile import Profile
from slurm.slicing import slice_now

_NAMES = {"wait": "queue", "idle": "stopped", "evaluate": "evaluations", "save": "saves", "other": "leaving"}
"""Of kinds of time, where they are not their own."""


class SoFar(NamedTuple):
    """Of one run."""

    spent: Spent
    to_come: Outlook | None
    """None: nothing, or nobody can tell."""
    end: Span | None
    """Unix time; None: of a run that is over, or nobody can tell."""
    last_step: int | None = None
    """That it comes to before the allocation ends that its user holds; None: the last of its recipe."""
    idle: bool = False
    """Whether it has more nodes or devices than its ranks are on, which are in no figure."""

    @property
    def device_hours(self) -> Span | None:
        """In all; None: nobody can tell."""
        if self.to_come is None:
            return None
        return Span(*(self.spent.device_hours + seconds / 3600 for seconds in self.to_come.device_seconds))


def so_far(row: Mapping[str, Any], now: float | None = None) -> SoFar | None:
    """What is known of a run; None where its files tell of no time. row: of `launch.runs.state.rows`."""
    run_dir, now = Path(row["run_dir"]), time.time() if now is None else now
    found, job = spent(run_dir, None if row["over"] else row["state"], now), None
    if found is None:
        return None
    known = SoFar(found, None, None)
    with contextlib.suppress(ValueError, OSError):
        job = read_job(run_dir)
        known = known._replace(idle=bool(job and (job.held or leaves_idle(Profile(**job.known_profile)))))
    if row["over"] or row["state"] not in ("running", "queued"):
        return known
    with contextlib.suppress(ValueError, OSError, KeyError, TypeError, ZeroDivisionError):
        to_come = _to_come(run_dir, row, found, job)
        known = known._replace(to_come=to_come)
        if job and job.held and to_come and row["time_left_s"] is not None:
            known = _in_allocation(known, to_come, row, max(0.0, row["time_left_s"] - job.profile["signal_lead"]))
    begins = now if row["state"] == "running" else row.get("expected_start")
    if known.to_come is None or begins is None:
        return known
    begin = Span(*[max(now, begins)] * 3)
    return known._replace(end=begin.plus(known.to_come.seconds).plus(known.to_come.wait or NONE))


def _in_allocation(known: SoFar, to_come: Outlook, row: Mapping[str, Any], left: float) -> SoFar:
    """As far as it comes in so many seconds, after which it has no further start."""
    shares = [min(1.0, left / seconds) if seconds else 1.0 for seconds in to_come.seconds]
    seconds, device_seconds = (
        Span(*(part * whole for part, whole in zip(shares, span, strict=True)))
        for span in (to_come.seconds, to_come.device_seconds)
    )
    step = row["step"] or 0
    last = step + int(shares[1] * (row["total_steps"] - step)) if shares[1] < 1 else None
    return known._replace(to_come=to_come._replace(seconds=seconds, device_seconds=device_seconds), last_step=last)


def _to_come(run_dir: Path, row: Mapping[str, Any], found: Spent, job: Job | None) -> Outlook | None:
    profile = Profile(**job.known_profile) if job else None
    running = found.attempts[-1] if row["state"] == "running" and found.attempts else None
    rates = (rates_of(run_dir, running.begin) if running else []) or rates_of(run_dir)
    if not (rate := span_of(rates)) or not found.attempts:
        return _by_others(run_dir, job, profile) if job and profile else None
    begun = row["step"] if running else newest_step(run_dir)
    images = (row["total_steps"] - (begun or 0)) * read_provenance(run_dir)["plan"]["batch_size"]
    work = Span(images / rate.high, images / rate.likely, images / rate.low).times(overhead(found.attempts))
    starts = [one.seconds["start"] + one.seconds["other"] for one in found.attempts if one.steps and one != running]
    starts = starts or [running.seconds["start"] if running else 0.0]
    waits = span_of([one.wait for one in found.attempts[1:] if one.wait])
    limit = _limit(run_dir, job, profile) if job and profile else None
    left = float("inf")
    if running and row["time_left_s"] is not None and profile:
        left = max(1.0, row["time_left_s"] - (limit.lead if limit else profile.signal_lead))
    return outlook(work, statistics.median(starts), waits, found.attempts[-1].ranks, limit, left if running else 0.0)


def _limit(run_dir: Path, job: Job, profile: Profile) -> Limit | None:
    """Of its further attempts: of slices, as its batch script would ask for them by what the run has shown so far."""
    if job.held:
        # It has one attempt, whose end is the allocation's.
        return None
    slice = None
    if profile.is_sliced:
        slice = slice_now(read_json(run_dir / "slurm" / job.request / f"{run_dir.name}.jobs.json"), run_dir)
    return limit_of(profile, slice)


def _by_others(run_dir: Path, job: Job, profile: Profile) -> Outlook | None:
    """Of a run that has shown nothing itself."""
    recipe = load_file(run_dir / "recipe.yaml").recipe
    nodes = find_sizes(recipe, profile, run_dir).nodes
    limit = _limit(run_dir, job, profile)
    found = expected(recipe, job.cluster, profile, run_dir.parent, nodes, limit, newest_step(run_dir))
    return found and found.by_ranks[0][1]


def lines(found: SoFar) -> dict[str, str]:
    """By label what is told of it."""
    seconds, whole = found.spent.seconds, found.spent.end - found.spent.begin
    parts = [f"{_NAMES.get(kind, kind)} {share(spent, whole)}" for kind, spent in seconds.items() if spent >= 0.5]
    queued = f"; queued for {format_duration(found.spent.queued)}" if found.spent.queued else ""
    shares = f": {', '.join(parts)}" if parts else ""
    return {"time": f"{format_duration(whole)}{shares}{queued}", "cost": f"{_cost(found)}{_end(found)}"}


def _cost(found: SoFar) -> str:
    told, device = found.spent, found.spent.device
    lost = f", {share(told.lost_hours, told.device_hours)} of them lost" if told.seconds["lost"] >= 0.5 else ""
    lost += f", {NOT_COUNTED}" if found.idle else ""
    if (whole := found.device_hours) is None:
        return f"{hours(3600 * told.device_hours)} {device}-hours{lost}"
    low, likely, high = (hours(3600 * value) for value in whole)
    whole_of = "all" if found.last_step is None else "this allocation"
    between = f" ({low} to {high})" if low != high else ""
    return f"{hours(3600 * told.device_hours)} {device}-hours so far{lost}; about {likely}{between} in {whole_of}"


def _end(found: SoFar) -> str:
    if found.end is None or found.to_come is None:
        return ""
    low, likely, high = (f"{datetime.fromtimestamp(moment):%m-%d %H:%M}" for moment in found.end)
    between = f" (between {low} and {high})" if low != high else ""
    if found.last_step is not None:
        return f"; the allocation ends first, at about step {found.last_step:,}: {likely}"
    further = found.to_come.attempts
    if found.to_come.wait is None:
        return f"; ends {likely}{between}, and the queue before further starts, of which nothing is known"
    waits = f", {in_span(found.to_come.wait)} of it in the queue" if further and any(found.to_come.wait) else ""
    return f"; ends {likely}{between}{waits}"


def as_json(found: SoFar | None) -> dict[str, Any]:
    """For `--json`; each None where it is not known."""
    if found is None:
        return dict.fromkeys(("spent", "gpu_hours", "gpu_hours_in_all", "queued_s", "expected_end"))
    on_gpus, whole = found.spent.device == "GPU", found.device_hours
    return {
        "spent": found.spent.seconds,
        "gpu_hours": found.spent.device_hours if on_gpus else 0.0,
        "gpu_hours_in_all": whole._asdict() if whole and on_gpus else None,
        "queued_s": found.spent.seconds["wait"],
        "expected_end": found.end and found.end._asdict(),
    }
