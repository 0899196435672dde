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
from resnet.rundir.artefacts import NAME
from resnet.rundir.chain import (
    OVER,
    TRAIN,
    begin_step,
    end_step,
    last_words,
    note_step,
    read_chain,
    read_step,
    refuse_foreign,
)
from resnet.rundir.files import read_json, to_json, write_atomic
from resnet.rundir.status import status_or_nothing
from slurm.attend import Clock
from slurm.batch import Job, leave, read_jobs
from slurm.control import hostnames
from slurm.ends import first_fate, slurms_word
from slurm.environment_copy import Copies, removal
from slurm.on_nodes import node_task, stage_command
from slurm.patience import order


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
        elif _restarts() and _was_made(run_dir, step, read_step(folder, content, number)["first_start"]):
            # By an attempt that was cut off.
            end = End("finished")
        else:
            refuse_foreign(step)
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
    record = run_dir / "slurm" / "job.json"
    if not (_restarts() and read_json(record).get("job_id") == job_id()):
        refuse_foreign(step)
        record.parent.mkdir(parents=True)
        write_atomic(record, to_json({**step["job"], "job_id": job_id()}, indent=1))
    job = Job(jobs, run_dir)
    job.run(command)
    leave(job)
    told = status_or_nothing(run_dir)
    state, reason = told.get("state"), told.get("reason")
    if state == "finished":
        return End(state)
    return End(state if state in ("queued", "stopped") else "failed", reason)


def _run(jobs: dict[str, Any], command: Sequence[str]) -> End:
    """Let one task do the step; all that is printed goes to this script's output."""
    if _restarts() > jobs["max_requeues"]:
        return End("failed", f"started {_restarts()} times, which is all that slurm.max_requeues allows")
    start = os.fstat(2).st_size
    # Asked for now: of a job that is preempted Slurm tells when its grace ends.
    clock = Clock(str(job_id()), jobs["signal_lead"])
    clock.ask()
    code = 0
    if jobs["stage"]:
        code = _srun(stage_command(jobs, 1))
    copies = Copies(jobs, lambda nodes, words: _srun([*node_task(jobs, len(nodes)), *words]))
    code = code or copies.bring([hostnames()[0]], [])
    words = copies.words([*jobs["srun"], "--nodes=1", "--ntasks=1", *copies.options(), *command])
    code = code or _srun(words, {CORES: str(jobs["cores"]), **copies.variables()})
    if copies.folders:
        _srun([*node_task(jobs, 1), *removal(copies.folders)])
    log = Path(os.path.realpath("/proc/self/fd/2"))
    printed = log.read_bytes()[start:].decode(errors="replace")
    word, fate = slurms_word(printed), first_fate(printed.splitlines())
    if word == "":
        return End("cancelled", "cancelled by scancel")
    if word == "TIME LIMIT":
        return End("failed", "it came to its time limit: slurm.time")
    if code == 0:
        return End("finished")
    by_signal = fate.by_signal if fate else None
    if by_signal == "SIGUSR2" and clock.is_near():
        return End("failed", "it came to its time limit, less slurm.signal_lead: slurm.time")
    # SIGUSR2 is what a preemption begins with, before Slurm's own word.
    if word or by_signal == "SIGUSR2":
        # Preempted, or its node is drained: the job starts again, if Slurm has not seen to it by itself.
        order(["scontrol", "requeue", str(job_id())], clock.left)
        time.sleep(2)
        return End("queued", (word or "preempted").lower())
    how = f"was killed by {by_signal}" if by_signal else None
    return End("failed", how or last_words(log, start) or f"exit code {code}")


def _restarts() -> int:
    """How often Slurm has started this job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def _was_made(run_dir: Path, step: dict[str, Any], since: float) -> bool:
    """Whether a run was pruned as this step does it, whole, since its first attempt began."""
    record = read_json(run_dir / NAME) if step["makes"] else {}
    finished = status_or_nothing(run_dir).get("state") == "finished"
    return finished and record.get("kind") == step["command"] and record.get("made", 0) >= since


def _srun(words: Sequence[str], environment: dict[str, str] | None = None) -> int:
    return subprocess.run(["srun", *words], env={**os.environ, **(environment or {})}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
