"""What the batch script of a step of a chain runs: see that what it acts on is there, do it, and note how it ended.

    python -m slurm.step JOBS_FILE COMMAND ...

Only the standard library, and Python 3.9, as `slurm.batch`, which trains where the step is `train`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resnet.process.environment import CORES, job_id
from resnet.process.exit_codes import FAILED, FINISHED
from resnet.rundir.attempts import read_attempts
from resnet.rundir.chain import OVER, TRAIN, begin_step, end_step, last_words, note_step, read_chain
from resnet.rundir.files import to_json, write_atomic
from resnet.rundir.status import status_or_nothing
from slurm.batch import Attempt, read_jobs, stage_command
from slurm.control import hostnames, said
from slurm.ends import first_fate, slurms_word


class End(NamedTuple):
    """How a step ended; `queued` where its job starts again."""

    state: str
    reason: str | None = None


def main(argv: Sequence[str]) -> int:
    jobs, run_dir = read_jobs(argv[0])
    folder, number = Path(jobs["chain"]), jobs["step"]
    content = read_chain(folder)
    try:
        begin_step(folder, content, number, job_id=job_id(), host=hostnames()[0])
        step = content["steps"][number - 1]
        if step["command"] == TRAIN:
            end = _train(jobs, run_dir, step, argv[1:])
        elif step["makes"] and status_or_nothing(run_dir).get("state") == "finished":
            # The name was free when the step was sent: an attempt that was cut off has done it.
            end = End("finished")
        else:
            end = _run(jobs, argv[1:])
    except ValueError as error:
        print(error, file=sys.stderr)
        end = End("failed", str(error))
    if end.state in OVER:
        end_step(folder, content, number, *end)
    else:
        note_step(folder, content, number, state=end.state, reason=end.reason)
    # Any other code lets Slurm cancel the steps behind this one.
    return FINISHED if end.state in ("finished", "queued") else FAILED


def _train(jobs: dict[str, Any], run_dir: Path, step: dict[str, Any], command: Sequence[str]) -> End:
    """Train as a job of the new run's own, which `launch` can cancel and continue."""
    (run_dir / "slurm").mkdir(parents=True, exist_ok=True)
    if not read_attempts(run_dir):
        write_atomic(run_dir / "slurm" / "job.json", to_json({**step["job"], "job_id": job_id()}, indent=1))
    Attempt(jobs, run_dir).run(command)
    told = status_or_nothing(run_dir)
    state, reason = told.get("state"), told.get("reason")
    if state == "finished":
        return End(state)
    return End(state if state in ("queued", "stopped") else "failed", reason)


def _run(jobs: dict[str, Any], command: Sequence[str]) -> End:
    """Let one task do the step; all that is printed goes to this script's output."""
    start = os.fstat(2).st_size
    code = 0
    if jobs["stage"]:
        code = _srun(stage_command(jobs, 1))
    code = code or _srun([*jobs["srun"], *command], {CORES: str(jobs["cores"])})
    log = Path(os.path.realpath("/proc/self/fd/2"))
    printed = log.read_bytes()[start:].decode(errors="replace")
    word, fate = slurms_word(printed), first_fate(printed.splitlines())
    if word == "":
        return End("cancelled", "cancelled by scancel")
    if word == "TIME LIMIT":
        return End("failed", "it came to its time limit: slurm.time")
    if code == 0:
        return End("finished")
    if word or (fate and fate.by_signal):
        # Preempted, or its node is drained: the job starts again, if Slurm has not seen to it by itself.
        said("scontrol", "requeue", str(job_id()))
        time.sleep(2)
        return End("queued", (word or "preempted").lower())
    return End("failed", last_words(log, start) or f"exit code {code}")


def _srun(words: Sequence[str], environment: dict[str, str] | None = None) -> int:
    return subprocess.run(["srun", *words], env={**os.environ, **(environment or {})}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
