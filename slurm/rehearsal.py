"""What the batch script of a rehearsal runs: the ranks make a few steps and save, go on from there, and leave.

python -m slurm.rehearsal JOBS_FILE COMMAND ...
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from resnet.process.environment import REHEARSAL, REHEARSED
from resnet.process.exit_codes import FAILED, FINISHED
from resnet.rundir.status import status_or_nothing
from slurm.batch import Job, leave, read_jobs
from slurm.ends import End
from slurm.record import tell

STEPS = (3, 1)
"""That the ranks make after each of their starts."""


class Rehearsal(Job):
    """A job that never goes back to the queue."""

    def _cause(self, end: End) -> str:
        return end.reason if end.reason == REHEARSED else super()._cause(end)

    def requeue(self, reason: str, end: End) -> int:
        tell(self.run_dir, state="stopped", reason=end.reason, failure=end.failure, eta_s=None)
        return FINISHED if end.outcome == "stopped" else FAILED


def main(argv: Sequence[str]) -> int:
    jobs, run_dir = read_jobs(argv[0])
    job, code, bad = None, FINISHED, {}
    for steps in STEPS:
        os.environ[REHEARSAL] = str(steps)
        job = Rehearsal(jobs, run_dir)
        job.nodes.left_out.update(bad)
        code = job.run(argv[1:])
        status = status_or_nothing(run_dir)
        if (status.get("state"), status.get("reason")) != ("stopped", REHEARSED):
            break
        # What has been looked at and brought to the nodes is there.
        jobs, bad = {**jobs, "check": False, "stage": []}, job.nodes.left_out
        # The run itself would not be started again here.
        jobs["max_requeues"] += job.number
    if job:
        leave(job)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
