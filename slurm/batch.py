"""What the batch script of a job runs: start the ranks, see how they end, and requeue the job if it is to go on.

    python -m slurm.batch JOBS_FILE COMMAND ...

Only the standard library: with a container it runs on the host's Python. The decision to requeue is made here, when all
ranks are out, and nowhere else.
"""

from __future__ import annotations

import contextlib
import json
import math
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
_CANCELLED = re.compile(r"\*\*\* JOB \d+ ON \S+ CANCELLED AT \S+ \*\*\*")
"""A user's scancel: a reason of Slurm's own would follow (DUE TO TIME LIMIT, PREEMPTION, JOB REQUEUE)."""
_NODE = re.compile(r"srun: error: Node failure on (\S+)")


class End(NamedTuple):
    """How an attempt ended."""

    outcome: str
    """finished, stopped (saved, to be continued), failed, or killed (cut off without a word)."""
    reason: str
    failure: str | None = None
    """Class of a failure, as in status.json."""
    node: str | None = None
    """Node on which it went wrong, where it may be the node's fault."""


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
        self.log_start = os.fstat(2).st_size
        self.lines: list[str] = []
        """What srun said."""

    def run(self, command: Sequence[str]) -> int:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._note)
        if why := told_to_end(self.run_dir):
            write_status(self.run_dir, state="stopped", reason=why, failure="user" if why == "cancelled" else None)
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
        log = self.logs / "stage-%t.log"
        shell = "\n".join(["set -e", *self.jobs["stage"]])
        code = self._srun(
            ["--ntasks-per-node=1", f"--ntasks={node_count()}", f"--output={_literal(log)}"], ["bash", "-c", shell]
        )
        if code == 0 and not self.told:
            return None
        if why := self.told or told_to_end(self.run_dir):
            return End("stopped", why)
        node, task, how = self._first_error() or (hostnames()[0], 0, f"code {code}")
        file = self.logs / f"stage-{task}.log"
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
            return End("failed", status.get("reason") or "", status.get("failure"), self._node_of_failure())
        if state == "stopped" or (error is None and self.told):
            return End("stopped" if state == "stopped" else "killed", self.told or status.get("reason") or "")
        return self._explain(code, error)

    def _node_of_failure(self) -> str | None:
        """The node of the rank that failed first by its own record, unless any node would have done the same."""
        records = [json.loads(file.read_text()) for file in self.run_dir.glob("logs/failure-*.json")]
        own = [r for r in records if r["own_fault"] and r["failure"] not in ("nan", "data", "disk", "lease", "oom")]
        if not own:
            return None
        nodes = hostnames()
        return nodes[min(own, key=lambda r: r["time"])["rank"] * len(nodes) // int(os.environ["SLURM_NTASKS"])]

    def _explain(self, code: int, error: tuple[str, int, str] | None) -> End:
        """What srun and the logs tell where the trainer could not."""
        for line in self.lines:
            if found := _NODE.search(line):
                return End("killed", f"node {found[1]} failed", "node", found[1])
        if error is None:
            return End("failed", f"srun ended with code {code}{_tail_of(self.lines)}", "crash")
        node, rank, how = error
        if "User defined signal 2" in how:
            return End("stopped", "SIGUSR2 before the ranks could listen")
        where = f"rank {rank} on {node}"
        if "memory" in how.lower() or any("oom" in line.lower() for line in self.lines):
            return End("failed", f"{where} was killed for want of memory (slurm.mem, data.num_workers)", "oom")
        if "killed" in how.lower():
            reason = f"{where} was killed{_tail(self.logs / f'rank-{rank}.log')}"
            return End("killed", self.told) if self.told else End("failed", reason, "killed", node)
        kind = "mistake" if how.endswith("exit code 2") else "crash"
        for speaker in (rank, 0):
            if said := _message(self.logs / f"rank-{speaker}.log"):
                return End("failed", f"{where}: {said}", kind, node if kind == "crash" else None)
        how = f"{how[0].lower()}{how[1:]}{_tail(self.logs / f'rank-{rank}.log')}"
        return End("failed", f"{where}: {how}", kind, node)

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
            cause = self._ended_by_user() or ("walltime" if self._at_limit() else "preempted")
        fruitless = step == self._start_step() and (end.outcome == "killed" or cause == "walltime")
        self._record(
            end=time.time(),
            outcome=end.outcome,
            cause=cause,
            step=step,
            reason=end.reason,
            fruitless=fruitless,
            node=end.node,
        )
        match end.outcome:
            case "finished":
                return 0
            case "failed":
                write_status(self.run_dir, state="failed", reason=end.reason, failure=end.failure, eta_s=None)
                return 1
        if cause in ENDS:
            failure = "user" if cause == "cancelled" else None
            write_status(self.run_dir, state="stopped", reason=cause, failure=failure, eta_s=None)
            return 0
        return self._requeue(f"{cause}: {end.reason}", end)

    def _ended_by_user(self) -> str | None:
        """Why the run is not to go on. Of a scancel only Slurm's word in our log tells, not its job state (CG)."""
        if why := told_to_end(self.run_dir):
            return why
        with contextlib.suppress(OSError), open("/proc/self/fd/2", encoding="utf-8", errors="replace") as log:
            log.seek(self.log_start)
            if any(_CANCELLED.search(line) for line in log):
                return "cancelled"
        return None

    def _start_step(self) -> int:
        return next(a["step"] for a in reversed(read_attempts(self.run_dir)) if a["attempt"] == self.number)

    def _at_limit(self) -> bool:
        """Whether the time limit is near: Slurm may send its signal a minute before it was asked to."""
        found = re.search(r"\bEndTime=(\S+)", show_job(self.job_id))
        with contextlib.suppress(ValueError):
            end = time.mktime(time.strptime(found[1], "%Y-%m-%dT%H:%M:%S")) if found else math.inf
            return end - time.time() <= self.jobs["signal_lead"] + 60
        return False

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


ENDS = {"cancelled": "cancel", "pruned": "pruned"}
"""Why a run is told to save and not to go on: by a user, or by a sweep's early stopping. With the file that says so."""


def end_file(run_dir: Path, why: str) -> Path:
    """The file by which an end that is meant is told from a preemption."""
    return run_dir / "slurm" / ENDS[why]


def told_to_end(run_dir: Path) -> str | None:
    return next((why for why in ENDS if end_file(run_dir, why).exists()), None)


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


def show_job(job: str) -> str:
    """What the controller knows of a job; empty where it knows none."""
    return subprocess.run(["scontrol", "show", "job", "-o", job], capture_output=True, text=True, timeout=60).stdout


def job_state(job: str, name: str | None = None) -> str | None:
    """The state that the controller gives a job; None where it knows none of that id (and name)."""
    found = re.search(r"\bJobName=(.*?) (?:UserId|GroupId)=.*?\bJobState=(\w+)", show_job(job))
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


def _message(file: Path) -> str:
    """The program's own last message in a rank's log."""
    found = re.findall(r"^train\.py: (.*(?:\n  .*)*)", _end_of(file), re.MULTILINE)
    return found[-1] if found else ""


def _tail(file: Path) -> str:
    return _tail_of([line for line in _end_of(file).splitlines() if not line.startswith("submitit ")])


def _end_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")[-10_000:]
    except OSError:
        return ""


def _tail_of(lines: Sequence[str]) -> str:
    last = [line for line in lines if line.strip()][-TAIL_LINES:]
    return "".join(f"\n  {line}" for line in last)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
