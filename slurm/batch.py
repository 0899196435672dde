"""What the batch script of a job runs: start the ranks, see how they end, and requeue the job if it is to go on.

    python -m slurm.batch JOBS_FILE COMMAND ...

Only the standard library, and Python 3.9: with a container it runs on the host's Python. The decision to requeue is
made here, when all ranks are out, and nowhere else.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet.process.environment import ATTEMPT, CORES, job_id
from resnet.process.exit_codes import FAILED, FINISHED
from resnet.rundir.attempts import ENDS, end_as_told, newest_step, read_attempts, told_to_end
from resnet.rundir.files import append_line, write_atomic
from resnet.rundir.find import is_sweep
from resnet.rundir.lease import holder_elsewhere
from resnet.rundir.status import status_or_nothing, status_text, write_status
from resnet.rundir.sweep.results import has_ended
from slurm.control import end_time, free_port, hostnames, job_state, was_preempted
from slurm.ends import End, end_of_staging, end_of_training, port_was_taken, slurms_word

WITHOUT_PROGRESS = 2
"""Restarts in a row that reach no new checkpoint, after which a run ends."""
LAST_SECONDS = 10.0
"""Before the time limit, when Slurm would end the batch script too: enough to requeue the job."""
EARLY_SECONDS = 60
"""By which Slurm may send its signal before it was asked to."""
REMIND_SECONDS = 5.0
ASK_SECONDS = 60.0
"""From one question for the time limit to the next, where Slurm did not answer."""
PAGE_SECONDS = 600
"""For the page of a sweep: one of 500 trials with 990 lines of metrics.jsonl each took 5.5 s."""
PORT_TRIES = 3
"""Ports that rank 0 may find taken, by a program that was quicker, before that is a failure."""


def main(argv: Sequence[str]) -> int:
    jobs, run_dir = read_jobs(argv[0])
    code = Attempt(jobs, run_dir).run(argv[1:])
    report_sweep(run_dir, jobs.get("python"))
    return code


def read_jobs(file: str) -> tuple[dict[str, Any], Path]:
    """What `slurm.sbatch` wrote for the jobs that were sent together, and the run directory of this one."""
    jobs = json.loads(Path(file).read_text(encoding="utf-8"))
    if len(jobs["runs"]) == 1:
        # Of the job in which this one was sent, if any.
        for name in [name for name in os.environ if name.startswith("SLURM_ARRAY_")]:
            del os.environ[name]
    return jobs, Path(jobs["runs"][int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))])


def report_sweep(run_dir: Path, python: str | None) -> None:
    """Let a sweep's page be written where this trial of it was the last to end: that one sees the others' ends.

    Of two that end at once each may write the page, which is replaced whole. Trouble with it fails nothing.
    python: what starts the ranks' Python, as the shell takes it: this one may lack what the page needs. None: a job
    of an older version does not say.
    """
    sweep_dir = run_dir.parent
    try:
        if python and is_sweep(sweep_dir) and has_ended(sweep_dir):
            command = ["bash", "-c", f"{python} -m resnet report {shlex.quote(str(sweep_dir))}"]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=PAGE_SECONDS)
            if done.returncode:
                raise ValueError(done.stderr.decode(errors="replace").strip().rpartition("\n")[2])
    except Exception as error:
        print(f"the sweep's page could not be written: {error or type(error).__name__}", file=sys.stderr)


def stage_command(jobs: Mapping[str, Any], nodes: int) -> list[str]:
    """What srun is to do so that the data is brought to every node: its options and the command."""
    options = ["--ntasks-per-node=1", f"--ntasks={nodes}", f"--cpus-per-task={jobs['node_cores']}"]
    return [*options, "bash", "-c", "\n".join(["set -e", *jobs["stage"]])]


class Attempt:
    """One start of a run in a job, from the first look at its directory to the requeue."""

    def __init__(self, jobs: dict[str, Any], run_dir: Path) -> None:
        self.jobs, self.run_dir = jobs, run_dir
        self.before = read_attempts(run_dir)
        self.number = self.before[-1]["attempt"] + 1 if self.before else 1
        self.logs = run_dir / "logs" / f"attempt-{self.number}"
        this_job = job_id()
        assert this_job, "a batch script runs in a job"
        self.job_id = this_job
        self.limit: float | None = None
        """Unix time of the time limit. Asked for early: of a job that is preempted Slurm tells when its grace ends."""
        self.step = newest_step(run_dir)
        self.told: str | None = None
        """The signal that asked the batch script to end."""
        self.lines: list[str] = []
        """What srun said."""
        self._log_start = os.fstat(2).st_size
        self._code: int | None = None
        self._finishing = threading.Lock()

    def run(self, command: Sequence[str]) -> int:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._note)
        self.limit = end_time(self.job_id)
        if why := told_to_end(self.run_dir):
            self._end_as_told(why)
            return FINISHED
        if holder := holder_elsewhere(self.run_dir):
            print(holder, file=sys.stderr)
            if status_or_nothing(self.run_dir).get("state") == "queued":
                self._tell(state="failed", reason=holder, failure="lease", eta_s=None)
            return FAILED
        if why := self._why_not():
            self._tell(state="failed", reason=why, failure="budget", eta_s=None)
            print(why, file=sys.stderr)
            return FAILED
        self.logs.mkdir(parents=True, exist_ok=True)
        nodes = hostnames()
        restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self._record(job_id=self.job_id, restart=restart, start=time.time(), nodes=nodes, step=self.step)
        if status_or_nothing(self.run_dir).get("state") != "finished":
            fields = {"attempts": self.number, "job_id": self.job_id, "host": nodes[0], "failure": None, "eta_s": None}
            self._tell(state="running", reason="starting", **fields)
        return self._finish(self._stage(nodes) or self._train(command, nodes))

    def _note(self, number: int, _: Any) -> None:
        self.told = self.told or f"signal {signal.Signals(number).name}"

    def _why_not(self) -> str | None:
        """Why no further attempt is made, if so. Those of other jobs do not count: a retry starts anew."""
        before = [attempt for attempt in self.before if attempt.get("job_id") == self.job_id]
        if len(before) > self.jobs["max_requeues"]:
            return f"started {len(before)} times, which is all that slurm.max_requeues allows"
        fruitless = 0
        for attempt in reversed(before):
            ended = "end" in attempt
            if attempt["step"] != self.step or (ended and not attempt["fruitless"]):
                break
            fruitless += ended or not was_preempted(self.job_id, attempt["start"])
        if fruitless <= WITHOUT_PROGRESS:
            return None
        return (
            f"{fruitless} attempts in a row ended without a checkpoint after step {self.step}: not tried again "
            "(launch logs shows the last; launch retry tries once more)"
        )

    def _stage(self, nodes: Sequence[str]) -> End | None:
        """Bring the data to every node; None where all is well."""
        if not self.jobs["stage"]:
            return None
        code = self._srun([f"--output={self.logs}/stage-%t.log"], stage_command(self.jobs, len(nodes)), {})
        if why := self.told or told_to_end(self.run_dir):
            return End("stopped", why)
        return end_of_staging(code, self.lines, nodes, self.logs) if code else None

    def _train(self, command: Sequence[str], nodes: Sequence[str]) -> End:
        code = 1
        for number in range(PORT_TRIES):
            first_log = self.logs / "rank-0.log"
            seen = first_log.stat().st_size if first_log.exists() else 0
            code = self._srun(
                [*self.jobs["srun"], f"--output={self.logs}/rank-%t.log"],
                command,
                {
                    "MASTER_ADDR": self.jobs["master"] or nodes[0],
                    "MASTER_PORT": str(free_port(f"{self.job_id} {self.logs}", number)),
                    ATTEMPT: str(self.number),
                    CORES: str(self.jobs["cores"]),
                },
            )
            if code == 0 or number == PORT_TRIES - 1 or not port_was_taken(first_log, seen):
                break
            self.lines.clear()
        return end_of_training(
            code, self.lines, status_or_nothing(self.run_dir), self.told, self.logs, self._node_of_failure(nodes)
        )

    def _node_of_failure(self, nodes: Sequence[str]) -> str | None:
        """The node of the rank that failed first by its own record, unless any node would have done the same."""
        records = [json.loads(file.read_text()) for file in self.run_dir.glob("logs/failure-*.json")]
        own = [r for r in records if r["own_fault"] and r["failure"] not in ("nan", "data", "disk", "lease", "oom")]
        if not own:
            return None
        first: int = min(own, key=lambda r: r["time"])["rank"]
        return nodes[first * len(nodes) // int(os.environ["SLURM_NTASKS"])]

    def _srun(self, options: Sequence[str], command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run a job step; its own messages are kept, and go to the batch script's log too."""
        ended = threading.Event()
        threading.Thread(target=self._attend, args=(ended,), daemon=True).start()
        step = subprocess.Popen(
            ["srun", *options, *command],
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        assert step.stderr is not None
        for line in step.stderr:
            self.lines.append(line.rstrip())
            print(line, end="", file=sys.stderr, flush=True)
        code = step.wait()
        ended.set()
        return code

    def _attend(self, ended: threading.Event) -> None:
        """While a step runs: tell it to save and stop where it is to, and be quicker than the time limit."""
        reminded, asked = 0.0, time.monotonic()
        while not ended.wait(1):
            if self.limit is None and not self.told and time.monotonic() - asked > ASK_SECONDS:
                self.limit, asked = end_time(self.job_id), time.monotonic()
            if told_to_end(self.run_dir) and time.monotonic() - reminded > REMIND_SECONDS:
                # Again and again: a step that is just starting does not hear it.
                subprocess.run(["scancel", "--signal=USR2", self.job_id], capture_output=True)
                reminded = time.monotonic()
            if self.limit and time.time() > self.limit - LAST_SECONDS:
                self._finish(End("killed", "the ranks had not saved in time (slurm.signal_lead)"))
                return

    def _finish(self, end: End) -> int:
        """Note the end, and requeue the job if the run is to go on; returns the batch script's exit code."""
        with self._finishing:
            if self._code is None:
                self._code = self._end(end)
            return self._code

    def _end(self, end: End) -> int:
        last, cause = newest_step(self.run_dir), None
        if end.outcome in ("stopped", "killed"):
            cause = self._cause()
        # A preemption is nobody's fault, as often as it happens.
        fruitless = last == self.step and (cause == "walltime" or end.failure == "node")
        fields = {"outcome": end.outcome, "cause": cause, "step": last, "reason": end.reason, "node": end.node}
        self._record(end=time.time(), fruitless=fruitless, **fields)
        if end.outcome == "finished":
            return FINISHED
        if end.outcome == "failed":
            self._tell(state="failed", reason=end.reason, failure=end.failure, eta_s=None)
            return FAILED
        if cause in ENDS:
            self._end_as_told(cause)
            return FINISHED
        return self._requeue(f"{cause}: {end.reason}", end)

    def _cause(self) -> str:
        if why := told_to_end(self.run_dir):
            return why
        word = self._slurms_word()
        if word == "":
            return "cancelled"
        near = self.limit is not None and self.limit - time.time() <= self.jobs["signal_lead"] + EARLY_SECONDS
        return "walltime" if near or word == "TIME LIMIT" else "preempted"

    def _end_as_told(self, why: str) -> None:
        self._tell(**end_as_told(why))

    def _requeue(self, reason: str, end: End) -> int:
        self._tell(state="queued", reason=reason, failure=None, eta_s=None)
        done = subprocess.run(["scontrol", "requeue", self.job_id], capture_output=True, text=True)
        # Slurm may have requeued it by itself (preemption, a failed node, scontrol requeue), and ends us soon.
        time.sleep(2)
        by_slurm = self._slurms_word() not in (None, "", "TIME LIMIT")
        if done.returncode == 0 or by_slurm or job_state(self.job_id) in ("PENDING", "REQUEUED", "REQUEUE_HOLD"):
            return FINISHED
        problem = " ".join(done.stderr.split())
        print(f"the job could not be requeued: {problem}", file=sys.stderr)
        self._tell(state="stopped", reason=f"{reason}; not requeued: {problem}", failure=end.failure)
        return FINISHED if end.outcome == "stopped" else FAILED

    def _slurms_word(self) -> str | None:
        try:
            with open("/proc/self/fd/2", encoding="utf-8", errors="replace") as log:
                log.seek(self._log_start)
                return slurms_word(log.read())
        except OSError:
            return None

    def _record(self, **fields: Any) -> None:
        """Add to attempts.jsonl. A disk that is full must not keep the job from going on."""
        try:
            append_line(self.run_dir / "slurm" / "attempts.jsonl", {"attempt": self.number, **fields})
        except OSError as error:
            print(f"attempts.jsonl could not be written: {error}", file=sys.stderr)

    def _tell(self, **fields: Any) -> None:
        """Update status.json, a damaged one by a new one."""
        try:
            write_status(self.run_dir, **fields)
        except ValueError:
            write_atomic(self.run_dir / "status.json", status_text({"name": self.run_dir.name, **fields}))
        except OSError as error:
            print(f"status.json could not be written: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
