"""The slices of a run, seen from its batch script: when the ranks are told to save, and what is asked of Slurm next.

Only the standard library, Python 3.9.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slurm.control import ask
from slurm.measured import QUEUE_SECONDS, left_seconds, queue_seconds, took
from slurm.room import planned_starts
from slurm.slices import Slice, hole, slice_of

if TYPE_CHECKING:
    from slurm.batch import Job

SAME_SECONDS = 20.0
"""By which slices of the same length may differ."""


def slice_now(jobs: Mapping[str, Any], run_dir: Path, free: int | None = None) -> Slice:
    """What to ask for by what the run has shown so far. free: minutes for which nodes are, None: nobody knows."""
    nodes = min(jobs.get("sizes") or [jobs["nodes"]])
    return slice_of(jobs["slice"]["limit"], left_seconds(run_dir, nodes), took(run_dir), jobs["signal_lead"], free)


def lead_of(jobs: Mapping[str, Any], run_dir: Path) -> float:
    """Seconds before the limit at which the ranks are told to save."""
    return slice_now(jobs, run_dir).lead if jobs.get("slice") else jobs["signal_lead"]


def is_over(job: Job) -> bool:
    """Whether it is time to save, of which Slurm's own signal would come too late."""
    left = job.clock.left()
    return bool(job.jobs.get("slice")) and left is not None and left <= job.clock.lead


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


def ask_for_time(job: Job) -> None:
    """Give the job, which waits in the queue again, the time that is worth having now.

    Slurm would keep the limit that the job was last started with. Where it refuses, that one stays.
    """
    if not job.jobs.get("slice"):
        return
    wanted = slice_now(job.jobs, job.run_dir, _free(job))
    limits = [f"TimeLimit={wanted.most}", f"TimeMin={wanted.least}"]
    try:
        ask(["scontrol", "update", f"JobId={job.job_id}", *limits])
    except ValueError as problem:
        print(f"the next slice is as long as the last: {problem}", file=sys.stderr)


def _free(job: Job) -> int | None:
    """Minutes for which the job's own nodes, which are free now, stay so."""
    try:
        planned = planned_starts(os.environ.get("SLURM_JOB_PARTITION"), os.environ.get("SLURM_JOB_ID"))
    except ValueError:
        return None
    return hole(planned, time.time(), queue_seconds(job.run_dir) or QUEUE_SECONDS)
