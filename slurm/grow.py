"""More nodes for a job that trains on fewer than it may: when to give it up for them. Standard library, Python 3.9.

The job saves, goes back to the queue and starts on what is free by then: its range of nodes stays as it was sent, so
that it takes the fewer again, at once, where another was quicker. Back in the queue it is behind all that wait: while
another job waits for nodes, it would give its own to that one, and keeps them.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from resnet.rundir.stages import AT_START, read_stages
from resnet.rundir.status import status_or_nothing
from slurm.control import TIMEOUT_SECONDS
from slurm.measured import QUEUE_SECONDS, Pace, paces, queue_seconds, took
from slurm.room import others_wait, room
from slurm.slices import Took, slice_of

if TYPE_CHECKING:
    from slurm.batch import Job

SCALING = 0.9
"""A run on k times the nodes is k to the power of this as fast, where it has not shown what it is."""
START_SECONDS, STOP_SECONDS = 120.0, 60.0
"""Of a run that has not shown what it takes."""
WORTH = 0.1
"""Of the time that is left, that has to be gained: the estimate is none to the second."""
SOON_SECONDS = 60.0
SHOWN_STEPS = 20
"""On a number of nodes, by which a run has shown how fast it is there."""


class Left(NamedTuple):
    """What is left to do."""

    steps: float
    step_seconds: float
    """On the nodes that the job has."""
    nodes: int
    made: int = SHOWN_STEPS
    """Steps that show it."""

    @property
    def seconds(self) -> float:
        return self.steps * self.step_seconds


def look(job: Job) -> None:
    """Where it is time to, see whether the run would end sooner on more nodes, and have the ranks save if so."""
    if not job.jobs.get("grow") or job.bigger or job.must_end():
        return
    if time.time() - max(job.begun, job.looked) < pause(job):
        return
    job.looked = time.time()
    # Those that the job's own range has: Slurm gives it no others.
    now, sizes = len(job.nodes.in_use), [size for size in job.jobs.get("sizes") or () if size <= job.jobs["nodes"]]
    # One that trains on fewer than it asked for, as it has lost a node, would wait for all of them.
    left = _left(job) if job.jobs.get("least_nodes", 1) <= now < max(sizes, default=0) else None
    if left is None or _ends_soon(job):
        return
    known, costs = paces(job.run_dir), _costs(job)
    if gain(left, max(sizes), known, *costs) <= 0:
        return
    size = _possible(job, now, sizes)
    won = gain(left, size, known, *costs) if size else 0.0
    if won > WORTH * left.seconds:
        job.bigger = f"{size} nodes are free for it in the place of {now}, to end about {won / 60:.0f} min sooner"


def pause(job: Job) -> float:
    """Seconds from one look to the next: twice as many for each growth in a row that brought no more nodes."""
    sizes = [*(len(attempt["nodes"]) for attempt in job.before), len(job.nodes.in_use)]
    brought = [sizes[at + 1] > sizes[at] for at, attempt in enumerate(job.before) if attempt.get("cause") == "grow"]
    in_vain = next((count for count, more in enumerate(reversed(brought)) if more), len(brought))
    return 60 * job.jobs["grow"] * 2**in_vain


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
    made = int(step - first - 1)
    if made < SHOWN_STEPS or updated <= since:
        return None
    return Left(total - step, (updated - since) / made, len(job.nodes.in_use), made)


def gain(left: Left, nodes: int, known: Sequence[Pace], measured: Took, wait: float) -> float:
    """Seconds by which the run would end sooner on so many nodes: less than 0 where it would end later.

    known: of its earlier attempts. wait: in the queue.
    """
    lost = (measured.stop or STOP_SECONDS) + wait + (measured.start or START_SECONDS)
    return left.seconds - left.seconds / speedup(left, nodes, known) - lost


def speedup(left: Left, nodes: int, known: Iterable[Pace]) -> float:
    """How much faster the run is on so many nodes than on those it has, by the steps that it has made on each."""
    shown: dict[int, list[Pace]] = {}
    for pace in (Pace(left.nodes, left.step_seconds, left.made), *known):
        shown.setdefault(pace.nodes, []).append(pace)
    made = {count: sum(pace.steps for pace in some) for count, some in shown.items()}
    typical = {
        count: sum(pace.steps * pace.step_seconds for pace in some) / made[count]
        for count, some in shown.items()
        if count == left.nodes or made[count] >= SHOWN_STEPS
    }
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
        found = room(os.environ.get("SLURM_JOB_PARTITION"))
        size = max((size for size in sizes if size <= now + found.idle), default=0)
        if size <= now or others_wait(found.sharing):
            return 0
    except ValueError:
        return 0
    return size if _starts_now(job, size - now) else 0


def _starts_now(job: Job, nodes: int) -> bool:
    """Whether a job like this one, on the nodes that it lacks, would start at once by Slurm's word.

    Slurm (`sbatch --test-only`) knows what nodes the job may have, but thinks of the jobs that run alone: of those that
    wait `others_wait` tells.
    """
    # One script for all jobs of an array.
    folder = Path(job.jobs.get("folder") or job.run_dir / "slurm")
    script = folder / f"{job.job_id.partition('_')[0]}_submission.sh"
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
    if found is None:
        said = " ".join(done.stderr.split()[-30:])
        print(f"whether {nodes} more nodes would start at once is not known: {said}", file=sys.stderr)
    return done.returncode == 0 and found is not None and float(found[1]) <= time.time() + SOON_SECONDS
