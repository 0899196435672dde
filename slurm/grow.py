"""More nodes for a job that trains on fewer than it may: when to give it up for them. Standard library, Python 3.9.

The job saves, goes back to the queue and starts on what is free by then: its range of nodes stays as it was sent, so
that it takes the fewer again, at once, where another was quicker.
"""

from __future__ import annotations

import math
import os
import re
import statistics
import subprocess
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from resnet.rundir.stages import AT_START, read_stages
from resnet.rundir.status import status_or_nothing
from slurm.control import TIMEOUT_SECONDS
from slurm.measured import Pace, paces, queue_seconds, took
from slurm.room import room
from slurm.slices import Took, slice_of
from slurm.slicing import QUEUE_SECONDS

if TYPE_CHECKING:
    from slurm.batch import Job

SCALING = 0.9
"""A run on k times the nodes is k to the power of this as fast, where it has not shown what it is."""
START_SECONDS, STOP_SECONDS = 120.0, 60.0
"""Of a run that has not shown what it takes."""
WORTH = 0.1
"""Of the time that is left, that has to be gained: the estimate is none to the second."""
SOON_SECONDS = 60.0


class Left(NamedTuple):
    """What is left to do."""

    steps: float
    step_seconds: float
    """On the nodes that the job has."""
    nodes: int

    @property
    def seconds(self) -> float:
        return self.steps * self.step_seconds


def look(job: Job) -> None:
    """Where it is time to, see whether the run would end sooner on more nodes, and have the ranks save if so."""
    every = job.jobs.get("grow")
    # Those that the job's own range has: Slurm gives it no others.
    sizes = [size for size in job.jobs.get("sizes") or () if size <= job.jobs["nodes"]]
    if not every or job.bigger or job.must_end() or time.time() - max(job.begun, job.looked) < 60 * every:
        return
    job.looked = time.time()
    now, most = len(job.nodes.in_use), max(sizes, default=0)
    left = _left(job) if now < most and not _ends_soon(job) else None
    if left is None or gain(left, most, paces(job.run_dir), *_costs(job)) <= 0:
        return
    size = _possible(job, now, sizes)
    won = gain(left, size, paces(job.run_dir), *_costs(job)) if size else 0.0
    if won > WORTH * left.seconds:
        job.bigger = f"{size} nodes are free for it in the place of {now}, to end about {won / 60:.0f} min sooner"


def _ends_soon(job: Job) -> bool:
    """Whether the job goes back to the queue before long by itself."""
    left = job.clock.left()
    return left is not None and left < 60 * slice_of(None, None, took(job.run_dir), job.jobs["signal_lead"]).least


def _costs(job: Job) -> tuple[Took, float]:
    return took(job.run_dir), queue_seconds(job.run_dir) or QUEUE_SECONDS


def _left(job: Job) -> Left | None:
    """By the steps of this attempt after its first; None where they are too few, or their end is not known."""
    status, stages = status_or_nothing(job.run_dir), read_stages(job.run_dir, job.number)
    seconds = stages.get("seconds", {})
    if "step" not in seconds or status.get("state") != "running":
        return None
    try:
        total, step, updated = (float(status[key]) for key in ("total_steps", "step", "updated"))
        first, started = (float(stages[key]) for key in ("first_step", "started"))
    except (KeyError, TypeError, ValueError):
        return None
    since = started + sum(seconds.get(stage, 0.0) for stage in AT_START)
    made = step - first - 1
    if made < 1 or updated <= since:
        return None
    return Left(total - step, (updated - since) / made, len(job.nodes.in_use))


def gain(left: Left, nodes: int, known: Sequence[Pace], measured: Took, wait: float) -> float:
    """Seconds by which the run would end sooner on so many nodes: less than 0 where it would end later.

    known: of its earlier attempts. wait: in the queue.
    """
    lost = (measured.stop or STOP_SECONDS) + wait + (measured.start or START_SECONDS)
    return left.seconds - left.seconds / speedup(left, nodes, known) - lost


def speedup(left: Left, nodes: int, known: Iterable[Pace]) -> float:
    """How much faster the run is on so many nodes than on those it has."""
    shown = {left.nodes: [left.step_seconds]}
    for pace in known:
        shown.setdefault(pace.nodes, []).append(pace.step_seconds)
    typical = {count: statistics.median(seconds) for count, seconds in shown.items()}
    if nodes in typical:
        return typical[left.nodes] / typical[nodes]
    least, most = min(typical), max(typical)
    power = SCALING
    if least < most:
        power = math.log(typical[least] / typical[most]) / math.log(most / least)
    return (nodes / left.nodes) ** min(1.0, max(0.0, power))


def _possible(job: Job, now: int, sizes: Sequence[int]) -> int:
    """The most nodes that the job could have at once; 0 where they are no more than it has, or Slurm gives no word."""
    try:
        idle = room(os.environ.get("SLURM_JOB_PARTITION")).idle
    except ValueError:
        return 0
    size = max((size for size in sizes if size <= now + idle), default=0)
    return size if size > now and _starts_now(job, size - now) else 0


def _starts_now(job: Job, nodes: int) -> bool:
    """Whether a job like this one, on the nodes that it lacks, would start at once by Slurm's word.

    Slurm says when it would start behind all that wait, so that nobody is overtaken, and knows what nodes it may have.
    """
    script = job.run_dir / "slurm" / f"{job.job_id}_submission.sh"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SBATCH_")}
    try:
        done = subprocess.run(
            ["sbatch", "--test-only", f"--nodes={nodes}", str(script)],
            env={**environment, "SLURM_TIME_FORMAT": "%s"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    found = re.search(r"to start at (\d+)", done.stderr)
    return done.returncode == 0 and found is not None and float(found[1]) <= time.time() + SOON_SECONDS
