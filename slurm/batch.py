"""What the batch script of a job runs: start the ranks, see how they end, and requeue the job if it is to go on.

    python -m slurm.batch JOBS_FILE COMMAND ...

Only the standard library: with a container it runs on the host's Python. The decision to requeue is made here, when all
ranks are out, and nowhere else.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recipes.rundir import read_status, to_json, write_status

WITHOUT_PROGRESS = 2
"""Restarts in a row that reach no new checkpoint, after which a run ends."""
PORTS = range(10_000, 32_000)
"""Below those that Linux hands out to outgoing connections."""
TAIL_LINES = 5
_TASK = re.compile(r"srun: error: (?P<node>[^:\s]+): tasks? (?P<rank>\d+)[-,\d]*: (?P<how>.+)")
_NODE = re.compile(
    r"(?:error: Node failure on|error: Step created for StepId=\S+ .*|launch/slurm: .*node fail.*) ?(\S*)"
)


class End(NamedTuple):
    """How an attempt ended."""

    outcome: str
    """finished, stopped (saved, to be continued), failed, or killed (cut off without a word)."""
    reason: str
    failure: str | None = None
    """Class of a failure, as in status.json."""


def main(argv: Sequence[str]) -> int:
    jobs = json.loads(Path(argv[0]).read_text())
    run_dir = Path(jobs["runs"][int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))])
    return Attempt(jobs, run_dir).run(argv[1:])


class Attempt:
    """One start of a run in a job, from the first look at its directory to the requeue."""

    def __init__(self, jobs: dict[str, Any], run_dir: Path) -> None:
        self.jobs, self.run_dir = jobs, run_dir
        self.records = run_dir / "slurm" / "attempts.jsonl"
        before = read_attempts(run_dir)
        self.number = before[-1]["attempt"] + 1 if before else 1
        self.before = before
        self.logs = run_dir / "logs" / f"attempt-{self.number}"
        self.job_id = job_id()
        self.told: str | None = None
        """The signal that asked the batch script to end."""
        self.lines: list[str] = []
        """What srun said."""

    def run(self, command: Sequence[str]) -> int:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._note)
        if is_cancelled(self.run_dir):
            write_status(self.run_dir, state="stopped", reason="cancelled", failure="user")
            return 0
        step = newest_step(self.run_dir)
        if why := self._why_not(step):
            write_status(self.run_dir, state="failed", reason=why, failure="budget", eta_s=None)
            print(why, file=sys.stderr)
            return 1
        self.logs.mkdir(parents=True, exist_ok=True)
        nodes = hostnames()
        self._record(job_id=self.job_id, restart=restart_count(), start=time.time(), nodes=nodes, step=step)
        if read_status(self.run_dir).get("state") != "finished":
            write_status(
                self.run_dir,
                state="running",
                reason="starting",
                failure=None,
                attempts=self.number,
                job_id=self.job_id,
                host=nodes[0],
                eta_s=None,
            )
        end = self._stage() or self._train(command, nodes[0])
        return self._finish(end)

    def _note(self, number: int, _: Any) -> None:
        self.told = self.told or signal.Signals(number).name

    def _why_not(self, step: int) -> str | None:
        """Why no further attempt is made, if so. Those of other jobs do not count: a retry starts anew."""
        before = [attempt for attempt in self.before if attempt.get("job_id") == self.job_id]
        if len(before) > self.jobs["max_requeues"]:
            return f"started {len(before)} times, which is all that slurm.max_requeues allows"
        fruitless = 0
        for attempt in reversed(before):
            ended = "end" in attempt
            if attempt["step"] != step or (ended and not attempt["fruitless"]):
                break
            fruitless += ended or not lost_by_preemption(self.job_id, attempt)
        if fruitless <= WITHOUT_PROGRESS:
            return None
        return (
            f"{fruitless} attempts in a row ended without a checkpoint after step {step}: not tried again "
            "(launch logs shows the last; launch retry tries once more)"
        )

    def _record(self, **fields: Any) -> None:
        with open(self.records, "a", encoding="utf-8") as file:
            file.write(to_json({"attempt": self.number, **fields}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _stage(self) -> End | None:
        """Bring the data to every node; None where all is well."""
        if not self.jobs["stage"]:
            return None
        log = self.logs / "stage-%N.log"
        shell = "\n".join(["set -e", *self.jobs["stage"]])
        code = self._srun(
            ["--ntasks-per-node=1", f"--ntasks={node_count()}", f"--output={_literal(log)}"], ["bash", "-c", shell]
        )
        if code == 0 and not self.told:
            return None
        if self.told or is_cancelled(self.run_dir):
            return End("stopped", self.told or "cancelled")
        node, _, how = self._first_error() or (None, None, f"code {code}")
        file = self.logs / f"stage-{node}.log"
        return End("failed", f"staging failed on {node}: {how}{_tail(file)}", "data")

    def _train(self, command: Sequence[str], first_node: str) -> End:
        log = self.logs / "rank-%t.log"
        os.environ["MASTER_ADDR"] = self.jobs["master"] or first_node
        os.environ["MASTER_PORT"] = str(free_port(self.job_id))
        os.environ["RESNET_ATTEMPT"] = str(self.number)
        code = self._srun([*self.jobs["srun"], f"--output={_literal(log)}"], command)
        status = read_status(self.run_dir)
        state, error = status.get("state"), self._first_error()
        if code == 0 and state in ("finished", "stopped"):
            return End(state, status.get("reason") or "")
        if state == "failed" and status.get("failure") not in ("peer", "killed"):
            return End("failed", status.get("reason") or "", status.get("failure"))
        if state == "stopped" or (error is None and self.told):
            return End("stopped" if state == "stopped" else "killed", self.told or status.get("reason") or "")
        return self._explain(code, error, first_node)

    def _explain(self, code: int, error: tuple[str, int, str] | None, first_node: str) -> End:
        """What srun and the logs tell where the trainer could not."""
        for line in self.lines:
            if found := _NODE.search(line):
                return End("killed", f"node {found[1] or first_node} failed", "node")
        if error is None:
            return End("failed", f"srun ended with code {code}{_tail_of(self.lines)}", "crash")
        node, rank, how = error
        if "User defined signal 2" in how:
            return End("stopped", "SIGUSR2 before the ranks could listen")
        kind = "oom" if "memory" in how.lower() or any("oom" in line.lower() for line in self.lines) else None
        if "killed" in how.lower():
            kind = kind or "killed"
        where = f"rank {rank} on {node}: {'out of memory, ' if kind == 'oom' else ''}{how[0].lower()}{how[1:]}"
        if self.told and kind == "killed":
            return End("killed", f"{self.told}; {where}")
        return End("failed", f"{where}{_tail(self.logs / f'rank-{rank}.log')}", kind or "crash")

    def _srun(self, options: Sequence[str], command: Sequence[str]) -> int:
        """Run a job step; its own messages are kept, and go to the batch script's log too."""
        step = subprocess.Popen(["srun", *options, *command], stderr=subprocess.PIPE, text=True, errors="replace")
        assert step.stderr is not None
        for line in step.stderr:
            self.lines.append(line.rstrip())
            print(line, end="", file=sys.stderr, flush=True)
        return step.wait()

    def _first_error(self) -> tuple[str, int, str] | None:
        """Node, rank and fate of the first rank that srun reports."""
        found = next((match for line in self.lines if (match := _TASK.match(line))), None)
        return (found["node"], int(found["rank"]), found["how"]) if found else None

    def _finish(self, end: End) -> int:
        step = newest_step(self.run_dir)
        cause = None
        if end.outcome in ("stopped", "killed"):
            cause = "user" if is_cancelled(self.run_dir) else "walltime" if self._at_limit() else "preempted"
        state = job_state(self.job_id)
        if state == "CANCELLED":
            cause = "user"
        fruitless = step == self._start_step() and (end.outcome == "killed" or cause == "walltime")
        self._record(
            end=time.time(), outcome=end.outcome, cause=cause, step=step, reason=end.reason, fruitless=fruitless
        )
        match end.outcome:
            case "finished":
                return 0
            case "failed":
                write_status(self.run_dir, state="failed", reason=end.reason, failure=end.failure, eta_s=None)
                return 1
        if cause == "user":
            write_status(self.run_dir, state="stopped", reason="cancelled", failure="user", eta_s=None)
            return 0
        return self._requeue(f"{cause}: {end.reason}", end)

    def _start_step(self) -> int:
        return next(a["step"] for a in reversed(read_attempts(self.run_dir)) if a["attempt"] == self.number)

    def _at_limit(self) -> bool:
        limit = os.environ.get("SLURM_JOB_END_TIME")
        return limit is not None and float(limit) - time.time() <= self.jobs["signal_lead"] + 15

    def _requeue(self, reason: str, end: End) -> int:
        write_status(self.run_dir, state="queued", reason=reason, failure=None, eta_s=None)
        done = subprocess.run(["scontrol", "requeue", self.job_id], capture_output=True, text=True)
        # Slurm may have requeued it by itself (preemption, a failed node, scontrol requeue), and ends us soon.
        time.sleep(2)
        state = job_state(self.job_id)
        if done.returncode == 0 or state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "COMPLETING"):
            return 0
        problem = " ".join(done.stderr.split())
        print(f"the job could not be requeued: {problem}", file=sys.stderr)
        write_status(self.run_dir, state="stopped", reason=f"{reason}; not requeued: {problem}", failure=None)
        return 0 if end.outcome == "stopped" else 1


def read_attempts(run_dir: Path) -> list[dict[str, Any]]:
    """The attempts of a run that Slurm started, in order: what is known of the start of each, and of its end."""
    file = run_dir / "slurm" / "attempts.jsonl"
    merged: dict[int, dict[str, Any]] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if "end" in record:
                # `step` stays that of the start: what an attempt is compared by.
                record["last_step"] = record.pop("step")
            merged.setdefault(record["attempt"], {}).update(record)
    return list(merged.values())


def newest_step(run_dir: Path) -> int:
    """The step of the newest checkpoint that was committed; 0 where there is none."""
    steps = [
        int(path.parent.name.removeprefix("step-")) for path in run_dir.glob("checkpoints/step-*[0-9]/manifest.json")
    ]
    return max(steps, default=0)


def cancel_file(run_dir: Path) -> Path:
    """The file by which a user's cancel is told from a preemption."""
    return run_dir / "slurm" / "cancel"


def is_cancelled(run_dir: Path) -> bool:
    return cancel_file(run_dir).exists()


def job_id() -> str:
    """This job as squeue and scontrol name it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]


def restart_count() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def node_count() -> int:
    return int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))


def hostnames() -> list[str]:
    """The job's nodes, rank 0's first."""
    done = subprocess.run(
        ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]], capture_output=True, text=True
    )
    return done.stdout.split() or [socket.gethostname()]


def job_state(job: str, name: str | None = None) -> str | None:
    """The state that the controller gives a job; None where it knows none of that id (and name)."""
    done = subprocess.run(["scontrol", "show", "job", "-o", job], capture_output=True, text=True, timeout=60)
    found = re.search(r"\bJobName=(.*?) (?:UserId|GroupId)=.*?\bJobState=(\w+)", done.stdout)
    return found[2] if found and name in (None, found[1]) else None


def lost_by_preemption(job: str, attempt: dict[str, Any]) -> bool:
    """Whether Slurm's accounting, where there is one, says that an attempt that left no word was preempted."""
    if shutil.which("sacct") is None:
        return False
    command = ["sacct", "-n", "-P", "-X", "-D", "-j", job, "-o", "Start,State"]
    try:
        rows = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.splitlines()
    except subprocess.TimeoutExpired:
        return False
    for start, state in (row.split("|") for row in rows if row.count("|") == 1):
        with contextlib.suppress(ValueError):
            begun = time.mktime(time.strptime(start, "%Y-%m-%dT%H:%M:%S"))
            if abs(begun - attempt["start"]) < 60 and state.startswith("PREEMPTED"):
                return True
    return False


def free_port(job: str) -> int:
    """A port that nobody listens on here: first one that is the job's own, so that jobs that start together differ."""
    numbers = [int(part) for part in job.split("_")]
    ports = [PORTS[(sum(numbers) + 1) % len(PORTS)], *random.Random(job).sample(PORTS, 50)]
    for port in ports:
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("", port))
            return port
    return ports[-1]


def _literal(path: Path) -> str:
    """A path for srun's --output, of which only the file's name is a pattern."""
    return f"{str(path.parent).replace('%', '%%')}/{path.name}"


def _tail(file: Path) -> str:
    try:
        return _tail_of(file.read_text(encoding="utf-8", errors="replace")[-10_000:].splitlines())
    except OSError:
        return ""


def _tail_of(lines: Sequence[str]) -> str:
    last = [line for line in lines if line.strip()][-TAIL_LINES:]
    return "".join(f"\n  {line}" for line in last)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
