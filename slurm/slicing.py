"""The slices of a run, seen from its batch script: when the ranks are told to save, and what is asked of Slurm next.

Only the standard library, Python 3.9.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slurm.control import TIMEOUT_SECONDS, ask
from slurm.measured import QUEUE_SECONDS, left_seconds, queue_seconds, took
from slurm.room import planned_starts
from slurm.slices import LAST_SECONDS, Slice, hole, slice_of

if TYPE_CHECKING:
    from slurm.batch import Job

UNREADABLE = (OSError, ValueError, KeyError, TypeError)
"""What reading a run's files may end in, where a file system fails for a time or a file is damaged."""
SAME_SECONDS = 20.0
"""By which slices of the same length may differ."""


def slice_now(jobs: Mapping[str, Any], run_dir: Path, free: int | None = None) -> Slice:
    """What to ask for by what the run has shown so far. free: minutes for which nodes are, None: nobody knows."""
    known, nodes = jobs["slice"], jobs.get("least_nodes") or jobs["nodes"]
    left, lead = left_seconds(run_dir, nodes), jobs["signal_lead"]
    return slice_of(known["limit"], left, took(run_dir), lead, free, known.get("least_lead", 0))


def lead_of(jobs: Mapping[str, Any], run_dir: Path) -> float:
    """Seconds before the limit at which the ranks are told to save."""
    if not jobs.get("slice"):
        return jobs["signal_lead"]
    try:
        return slice_now(jobs, run_dir).lead
    except UNREADABLE as error:
        print(f"what the run has shown cannot be read: {error!r}", file=sys.stderr)
        return jobs["signal_lead"]


def is_over(job: Job) -> bool:
    """Whether it is time to save, of which Slurm's own signal would come too late."""
    limit = job.clock.limit
    if not job.jobs.get("slice") or limit is None:
        return False
    # Where Slurm did not take what was asked for, the slice may be shorter than what is worth having by now.
    return limit - time.time() <= min(job.clock.lead, (limit - job.clock.begun) / 2)


def end_of_slice(job: Job, cause: str | None, last: int) -> dict[str, Any]:
    """What is noted of an attempt beside how it ended. cause: why it did. last: step of the newest checkpoint.

    A slice that made progress does not count against slurm.max_requeues. One that made none, since it was too short to,
    is fruitless only if one before it was as long: the next that is asked for is longer.
    """
    now = time.time()
    told = {} if job.stop_asked is None or cause is None else {"stop_s": round(now - job.stop_asked, 3)}
    if cause == "grow":
        return {**told, "planned": True, "bigger": job.bigger}
    if not job.jobs.get("slice") or cause != "walltime":
        return told
    told["slice_s"] = round(now - job.begun, 3)
    if last > job.step:
        return {**told, "planned": True}
    before = [attempt["slice_s"] for attempt in job.before if attempt["step"] == job.step and "slice_s" in attempt]
    return {**told, "fruitless": max(before, default=0.0) > told["slice_s"] - SAME_SECONDS}


def next_limits(job: Job) -> list[str]:
    """What `scontrol update` is told of the time that is worth having next, for a job that is to wait again.

    Slurm would keep the limit that the job was last started with: so it does where this cannot be found.
    """
    if not job.jobs.get("slice"):
        return []
    try:
        wanted = slice_now(job.jobs, job.run_dir, _free(job))
    except UNREADABLE as error:
        print(f"the next slice is as long as the last: {error!r}", file=sys.stderr)
        return []
    return [f"TimeLimit={wanted.most}", f"TimeMin={wanted.least}"]


def change(job: Job, limits: Sequence[str], others: Sequence[str] = ()) -> None:
    """Change what a job asks for that waits in the queue again, by one order. Where Slurm refuses, it stays.

    limits: of `next_limits`. others: of what it is told too.
    """
    for wanted in filter(None, ([*limits, *others], others if limits else ())):
        try:
            ask(["scontrol", "update", f"JobId={job.job_id}", *wanted])
            return
        except ValueError as problem:
            kept = "the next slice is as long as the last: " if limits and wanted != others else ""
            print(f"{kept}{problem}", file=sys.stderr)


def _free(job: Job) -> int | None:
    """Minutes for which the job's own nodes, which it gives back, stay free; in its last seconds nobody is asked."""
    left = job.clock.left()
    if job.in_haste or (left is not None and left < LAST_SECONDS + TIMEOUT_SECONDS):
        return None
    try:
        planned = planned_starts(os.environ.get("SLURM_JOB_PARTITION"), os.environ.get("SLURM_JOB_ID"))
    except ValueError:
        return None
    return hole(planned, time.time(), queue_seconds(job.run_dir) or QUEUE_SECONDS)
