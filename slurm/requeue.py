"""A job goes back to the queue, for its run to go on later. Only the standard library, Python 3.9."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from resnet.process.exit_codes import FAILED, FINISHED
from slurm.control import job_state
from slurm.ends import End
from slurm.patience import order, spread
from slurm.record import tell
from slurm.slices import LAST_SECONDS
from slurm.slicing import change, next_limits

if TYPE_CHECKING:
    from slurm.batch import Job


def requeue(job: Job, reason: str, end: End) -> int:
    """Send the job to the queue again; returns the batch script's exit code."""
    tell(job.run_dir, state="queued", reason=reason, failure=None, eta_s=None)
    # What comes after the order below is on borrowed time: Slurm ends this script by it.
    limits, others = next_limits(job), []
    if job.nodes.left_out:
        others = [f"ExcNodeList={','.join(filter(None, [job.jobs.get('exclude'), *job.nodes.left_out]))}"]
    left = job.clock.left()
    if job.race:
        # Before Slurm may end this script.
        job.race.let_go(left)
    if left is None:
        spread()
    elif left > LAST_SECONDS:
        spread(left - LAST_SECONDS)
    problem = order(["scontrol", "requeue", job.job_id], job.clock.left)
    # Slurm may have requeued it by itself (preemption, a failed node, scontrol requeue), and ends us soon.
    waits = problem is None or "pending" in problem
    if waits:
        change(job, limits, others)
    time.sleep(2)
    if not waits and job_state(job.job_id) in ("PENDING", "REQUEUED", "REQUEUE_HOLD"):
        waits = True
        change(job, limits, others)
    if waits or job.log.slurms_word() not in (None, "", "TIME LIMIT"):
        return FINISHED
    print(f"the job could not be requeued: {problem}", file=sys.stderr)
    tell(job.run_dir, state="stopped", reason=f"{reason}; not requeued: {problem}", failure=end.failure)
    return FINISHED if end.outcome == "stopped" else FAILED
