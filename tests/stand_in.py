"""Stands for Python on a cluster of `tests.racing`: runs batch scripts as they are, and "trains" in the place of ranks.

The ranks' own imports take half a minute where many processes share a core, and are nothing that a race is about. What
is: they take the run's lease, make steps that each leave a checkpoint, save and stop when they are told to, and write
down who made which step.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from resnet.process.environment import ATTEMPT, SCRIPT, cluster_name
from resnet.rundir.attempts import newest_step
from resnet.rundir.files import append_line
from resnet.rundir.lease import Lease
from resnet.rundir.status import write_status

STEPS, STEP_SECONDS = 25, 0.1
MADE = "made.jsonl"
"""File in the run directory with a line for each step that was made."""


def main() -> int:
    run_dir = Path(os.environ[SCRIPT].split(" ", 2)[2])
    told: list[int] = []
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda number, _: told.append(number))
    lease = Lease(run_dir)
    lease.acquire()
    by = {"cluster": cluster_name(), "job_id": os.environ["SLURM_JOB_ID"], "attempt": int(os.environ[ATTEMPT])}
    write_status(run_dir, state="running", reason=None, host=os.uname().nodename, pid=os.getpid())
    try:
        for step in range(newest_step(run_dir) + 1, STEPS + 1):
            if told or not lease.check():
                if not lease.lost:
                    write_status(run_dir, state="stopped", reason=f"signal {told[0]}")
                return 0
            append_line(run_dir / MADE, {"step": step, **by, "time": time.time()})
            time.sleep(STEP_SECONDS)
            folder = run_dir / "checkpoints" / f"step-{step:08}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "manifest.json").write_text(json.dumps({"step": step}))
        write_status(run_dir, state="finished", reason=None, step=STEPS)
        return 0
    finally:
        lease.release()


if __name__ == "__main__":
    sys.exit(main())
