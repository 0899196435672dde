"""A job goes back to the queue, for its run to go on later. Only the standard library, Python 3.9."""

from __future__ import annotations

import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from resnet.process.exit_codes import FAILED, FINISHED
from resnet.rundir.attempts import end_as_told, told_to_end
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
    if why := told_to_end(job.run_dir):
        # Since the ranks have ended: what was done then may have taken minutes.
        tell(job.run_dir, **end_as_told(why))
        return FINISHED
    if job.race and not job.race.let_go():
        return FINISHED
    tell(job.run_dir, state="queued", reason=reason, failure=None, eta_s=None)
    # What is started from here on: Slurm ends this script, and all that it has started, with the order to requeue it.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    with ThreadPoolExecutor(1) as aside:
        # Neither waits for the other: Slurm may end this script soon, and a controller may not answer.
        elsewhere = aside.submit(job.race.send_others) if job.race else None
        problem = _requeue_own(job)
        goes_on = problem is None or job.log.slurms_word() not in (None, "", "TIME LIMIT")
        if elsewhere and elsewhere.result() and not goes_on:
            print(f"the run waits elsewhere; this job could not be requeued: {problem}", file=sys.stderr)
            return FINISHED
    if goes_on:
        return FINISHED
    print(f"the job could not be requeued: {problem}", file=sys.stderr)
    if job.race and job.race.is_followed():
        # By the status that another job, which has had the run since, gave it.
        return FINISHED
    tell(job.run_dir, state="stopped", reason=f"{reason}; not requeued: {problem}", failure=end.failure)
    return FINISHED if end.outcome == "stopped" else FAILED


def _requeue_own(job: Job) -> str | None:
    """Returns Slurm's words where the job does not wait in the queue by now."""
    # What comes after the order below is on borrowed time: Slurm ends this script by it.
    limits, others = next_limits(job), []
    if job.nodes.left_out:
        others = [f"ExcNodeList={','.join(filter(None, [job.jobs.get('exclude'), *job.nodes.left_out]))}"]
    if not job.in_haste:
        left = job.clock.left()
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
    return None if waits else problem
