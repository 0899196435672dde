"""Whether a run is started once more: what its budget allows, and on how many ranks. Standard library, Python 3.9."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet.process.environment import cluster_name
from resnet.rundir.provenance import kept_plan
from slurm.control import was_preempted

WITHOUT_PROGRESS = 2
"""Restarts in a row that reach no new checkpoint, after which a run ends."""


def is_of_job(attempt: Mapping[str, Any], job_id: str) -> bool:
    """Whether an attempt is of the job of this id here, and not of another cluster's."""
    return attempt.get("job_id") == job_id and attempt.get("cluster") in (None, cluster_name())


def why_not(
    attempts: Sequence[Mapping[str, Any]], job_id: str, step: int, max_requeues: int, sent: str | None = None
) -> str | None:
    """Why no further attempt is made, if so. Those of jobs that were sent before do not count: a retry starts anew.

    attempts: of the run, in order. step: of its newest checkpoint. sent: of a job that was sent with others for the one
    run, what tells their attempts, which count too.
    """
    before = [one for one in attempts if (one.get("sent") == sent if sent else is_of_job(one, job_id))]
    # A slice that came to its end in good order is what was asked for.
    counted = [attempt for attempt in before if not attempt.get("planned")]
    if len(counted) > max_requeues:
        return f"started {len(counted)} times, which is all that slurm.max_requeues allows"
    fruitless = 0
    for attempt in reversed(before):
        ended = "end" in attempt
        if attempt["step"] != step or (ended and not attempt["fruitless"]):
            break
        fruitless += ended or not _was_preempted(attempt, job_id, before)
    if fruitless <= WITHOUT_PROGRESS:
        return None
    return (
        f"{fruitless} attempts in a row ended without a checkpoint after step {step}: not tried again "
        "(launch logs shows the last; launch retry tries once more)"
    )


def _was_preempted(attempt: Mapping[str, Any], job_id: str, before: Sequence[Mapping[str, Any]]) -> bool:
    if not is_of_job(attempt, job_id):
        # Of another cluster, perhaps; nobody's fault then.
        return True
    # Those in place began later than what Slurm may have preempted: the job.
    same = (one for one in before if is_of_job(one, job_id) and one.get("restart") == attempt.get("restart"))
    return was_preempted(job_id, next(same)["start"])


def fits(run_dir: Path, ranks: int) -> bool:
    """Whether the run's global batch can be made on so many ranks of the micro-batches that it began with."""
    # Batch normalisation of all ranks together binds the run to their number.
    plan = kept_plan(run_dir)
    return bool(plan) and not plan.get("sync_batchnorm") and plan["batch_size"] % (plan["micro_batch"] * ranks) == 0
