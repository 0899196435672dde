"""What the batch script of a job runs: start the ranks, see how they end, start them again, or requeue the job.

    python -m slurm.batch JOBS_FILE COMMAND ...

Only the standard library, and Python 3.9: with a container it runs on the host's Python. The decision to go on, in
place or by way of the queue, is made here, when all ranks are out, and nowhere else.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from resnet.process.environment import ATTEMPT, CLUSTER, CORES, MICRO_BATCH, RANKS, SCRIPT, cluster_name, job_id
from resnet.process.exit_codes import FAILED, FINISHED
from resnet.process.processes import started
from resnet.process.rank_logs import RANK_LOGS
from resnet.rundir.attempts import ENDS, end_as_told, newest_step, read_attempts, told_to_end
from resnet.rundir.failures import first_failure, read_failures
from resnet.rundir.lease import holder_elsewhere
from resnet.rundir.status import status_or_nothing
from slurm.attend import Clock, attend, tell_to_stop
from slurm.budget import fits, is_of_job, why_not
from slurm.control import free_port, give_node_back, hostnames
from slurm.ends import (
    MENDABLE,
    OF_A_BAD_NODE,
    End,
    end_of_training,
    lost_node,
    node_of_rank,
    port_was_taken,
)
from slurm.nodes import Nodes
from slurm.on_nodes import OnNodes
from slurm.race import Race, enter
from slurm.rank_output import kept, output
from slurm.record import OwnLog, note_lost, reached, record, tell
from slurm.requeue import requeue
from slurm.share import share
from slurm.slicing import end_of_slice, is_over, lead_of
from slurm.srun import Step, await_controller
from slurm.sweep_page import report_sweep

LOG_SECONDS = 5.0
"""For the logs of lost ranks that are on their nodes, before the job leaves these to the queue."""
WORD_SECONDS = 3.0
"""For Slurm to say in the log why it has sent SIGTERM to the ranks, which may have ended of it by then."""
CONTROLLER_SECONDS = 600.0
"""For a controller that does not answer, before the job leaves it to the queue."""
PORT_TRIES = 3
"""Ports that rank 0 may find taken, by a program that was quicker, before that is a failure."""


def main(argv: Sequence[str]) -> int:
    jobs, run_dir = read_jobs(argv[0])
    race = enter(run_dir, jobs["claim"]) if jobs.get("claim") else None
    if isinstance(race, int):
        return race
    try:
        job = Job(jobs, run_dir, race)
        code = job.run(argv[1:])
        leave(job)
    finally:
        if race:
            race.end()
    return code


def read_jobs(file: str) -> tuple[dict[str, Any], Path]:
    """What `slurm.sbatch` wrote for the jobs that were sent together, and the run directory of this one."""
    jobs = json.loads(Path(file).read_text(encoding="utf-8"))
    if len(jobs["runs"]) == 1:
        # Of the job in which this one was sent, if any.
        for name in [name for name in os.environ if name.startswith("SLURM_ARRAY_")]:
            del os.environ[name]
    # Of the job in which this one was sent, if that is not of this one's cluster.
    os.environ.pop(CLUSTER, None)
    if jobs.get("claim"):
        os.environ[CLUSTER] = jobs["claim"]["cluster"]
    return jobs, Path(jobs["runs"][int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))])


def leave(job: Job) -> None:
    """What follows on every job's last attempt, whatever script it ran."""
    if status_or_nothing(job.run_dir).get("state") != "queued":
        share(job.jobs.get("share"))
    report_sweep(job.run_dir, job.on_nodes.copies.word(job.jobs.get("python") or "") or None)
    job.on_nodes.leave()


class Job:
    """A run in a job: its ranks are started, and again in place where one was lost, until it ends or is queued again.

    Each start of the ranks is an attempt, and a job step.
    """

    def __init__(self, jobs: dict[str, Any], run_dir: Path, race: Race | None = None) -> None:
        self.jobs, self.run_dir, self.race = jobs, run_dir, race
        this_job = job_id()
        assert this_job, "a batch script runs in a job"
        self.job_id = this_job
        self.nodes = self._all_nodes()
        self.clock, self.log = Clock(this_job, lead_of(jobs, run_dir)), OwnLog()
        self.told: str | None = None
        """The signal that asked the batch script to end."""
        self.srun = Step()
        """The newest."""
        self.cause: str | None = None
        """Why this attempt was started in place of the one before; None for the first in the job."""
        self._bringing: threading.Thread | None = None
        """Brings the logs of lost ranks from their nodes, which a restart does not wait for."""
        self.on_nodes = OnNodes(self)
        self.in_haste = False
        """Whether Slurm is about to end this script, at a time that nobody knows."""
        self.looked = 0.0
        """Unix time at which more nodes were last looked for."""
        self._code: int | None = None
        self._finishing = threading.Lock()
        self._next_attempt()

    def _all_nodes(self) -> Nodes:
        jobs = self.jobs
        return Nodes(hostnames(), jobs.get("nodes"), jobs.get("local_ranks", 1), jobs.get("sizes", ()))

    @property
    def step_name(self) -> str:
        """Of the ranks' step, by which it is told from others of the job."""
        return self.logs.name

    def _next_attempt(self) -> None:
        self.before = read_attempts(self.run_dir)
        self.number = self.before[-1]["attempt"] + 1 if self.before else 1
        self.logs = self.run_dir / "logs" / f"attempt-{self.number}"
        self.step = newest_step(self.run_dir)
        """That the attempt starts from."""
        self.stop_asked: float | None = None
        """Unix time at which the ranks were first told to save."""
        self.begun = time.time()
        """Unix time."""
        self.bigger: str | None = None
        """Why the ranks are to save for more nodes."""

    def listen(self) -> None:
        """Note the signals that ask for the end, from now on."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._note)

    def run(self, command: Sequence[str]) -> int:
        self.listen()
        # Early: of a job that is preempted Slurm tells when its grace ends.
        self.clock.ask()
        if why := told_to_end(self.run_dir):
            self._end_as_told(why)
            return FINISHED
        if holder := holder_elsewhere(self.run_dir):
            print(holder, file=sys.stderr)
            if status_or_nothing(self.run_dir).get("state") == "queued":
                tell(self.run_dir, state="failed", reason=holder, failure="lease", eta_s=None)
            return FAILED
        if why := self._why_not():
            tell(self.run_dir, state="failed", reason=why, failure="budget", eta_s=None)
            print(why, file=sys.stderr)
            return FAILED
        return self._run(command)

    def _run(self, command: Sequence[str]) -> int:
        while True:
            self._begin()
            end = self.on_nodes.prepare() or self._train(command)
            if end.failure not in MENDABLE:
                return self.finish(end)
            # To be continued, here or by way of the queue.
            end = end._replace(outcome="killed")
            if not self._can_go_on_here(end):
                if self._bringing and not self.must_end():
                    self._bringing.join(LOG_SECONDS)
                return self.finish(end)
            if (code := self._restart(end)) is not None:
                return code

    def _begin(self) -> None:
        """Note that an attempt begins."""
        self.logs.mkdir(parents=True, exist_ok=True)
        nodes, restart = self.nodes.in_use, int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self.begun = time.time()
        fields = {"job_id": self.job_id, "restart": restart, "start": self.begun, "nodes": nodes, "step": self.step}
        fields |= {"ranks": len(nodes) * self.nodes.ranks, "submitted": self.jobs.get("submitted")}
        fields |= {"cluster": cluster_name(), **({"sent": self.race.token} if self.race else {})}
        fields |= {"log": self.log.written()}
        note_lost(self.run_dir, self.before)
        self.record(**fields, **({"in_place": self.cause} if self.cause else {}))
        if status_or_nothing(self.run_dir).get("state") != "finished":
            fields = {"attempts": self.number, "job_id": self.job_id, "host": nodes[0], "failure": None, "eta_s": None}
            tell(
                self.run_dir,
                state="running",
                reason=f"restarting in place: {self.cause}" if self.cause else "starting",
                **fields,
            )

    def _can_go_on_here(self, end: End) -> bool:
        """Whether this job may start the ranks again, and has the nodes for it."""
        if self.must_end() or self.clock.is_near() or self.log.slurms_word() is not None:
            return False
        self._blame(end)
        return (
            self.nodes.shrink(partial(fits, self.run_dir))
            and await_controller(CONTROLLER_SECONDS, lambda: bool(self.must_end()) or self.clock.is_near())
            and not (self._is_preempted() or self.must_end())
        )

    def why_to_stop(self) -> str | None:
        """Why the ranks are to be told to save, if so."""
        # The time first, which needs no file system.
        why = ("the slice is over" if is_over(self) else None) or self.bigger or self._taken()
        if why and self.stop_asked is None:
            self.stop_asked = time.time()
        return why

    def must_end(self) -> str | None:
        """Why, if so."""
        return self.told or self._taken()

    def _taken(self) -> str | None:
        """Why the run is no longer this job's to train, if so."""
        return told_to_end(self.run_dir) or ("taken over" if self.race and self.race.lost else None)

    def _is_preempted(self) -> bool:
        """Whether Slurm has drawn the job's end nearer, of which it tells the steps, and nobody between two of them."""
        if self.clock.was_drawn_nearer():
            self.told = self.told or "preemption"
            return True
        return self.clock.is_near()

    def _restart(self, end: End) -> int | None:
        """Turn to the next attempt; returns the exit code where there is none, since there were too many."""
        with self._finishing:
            if self._code is None:
                self._note_end(end, end.failure)
                self._next_attempt()
                if why := self._why_not():
                    tell(self.run_dir, state="failed", reason=f"{end.reason}\n{why}", failure=end.failure, eta_s=None)
                    print(why, file=sys.stderr)
                    self._code = FAILED
            self.cause = end.reason.partition("\n")[0]
            return self._code

    def _blame(self, end: End) -> None:
        """Leave a node out that failed, or, where another can take its place, one on which a second attempt failed."""
        if end.node is None:
            return
        own = [attempt for attempt in self.before if is_of_job(attempt, self.job_id)]
        again = any(attempt.get("node") == end.node for attempt in own)
        if end.failure in OF_A_BAD_NODE or (again and self.nodes.spares):
            self.leave_out(end.node, end.reason)
        for node in self.srun.dead_nodes:
            if node not in self.nodes.left_out:
                self.leave_out(node, f"node {node} failed")

    def leave_out(self, node: str, why: str) -> None:
        """Train on other nodes of the job, if there are enough, from the next attempt on."""
        self.nodes.leave_out(node, why)
        print(f"without {node} from here on: {why}", file=sys.stderr)
        if (kept := self.kept_without(node)) and (problem := give_node_back(kept)):
            print(f"{node} stays in the job, which Slurm ends with it: {problem}", file=sys.stderr)

    def kept_without(self, node: str) -> list[str]:
        """The nodes that the job keeps where one that is left out is given back to Slurm; [] where it stays."""
        return [] if node in self.nodes.kept else self.nodes.kept

    def _note(self, number: int, _: Any) -> None:
        self.told = self.told or f"signal {signal.Signals(number).name}"

    def _why_not(self) -> str | None:
        """Why no further attempt is made, if so."""
        sent = self.race.token if self.race else None
        return why_not(self.before, self.job_id, self.step, self.jobs["max_requeues"], sent)

    def _train(self, command: Sequence[str]) -> End:
        code, nodes = 1, self.nodes.in_use
        options = [*self.jobs["srun"], f"--job-name={self.step_name}", *self.nodes.options()]
        to, before = output(self.jobs, self.run_dir, self.number, self.logs)
        command = [*before, *command]
        for number in range(PORT_TRIES):
            first_log = self.logs / "rank-0.log"
            seen = first_log.stat().st_size if first_log.exists() else 0
            environment = {
                "MASTER_ADDR": self.jobs["master"] or nodes[0],
                "MASTER_PORT": str(free_port(f"{self.job_id} {self.logs}", number)),
                ATTEMPT: str(self.number),
                SCRIPT: f"{os.getpid()} {started(os.getpid())} {self.run_dir}",
                CORES: str(self.jobs["cores"]),
                RANKS: str(len(nodes) * self.nodes.ranks),
                MICRO_BATCH: str(self.jobs.get("micro_batch") or ""),
                RANK_LOGS: kept(self.jobs),
                **self.on_nodes.copies.variables(),
            }
            words = self.on_nodes.copies.words([*options, *self.on_nodes.copies.options(), to, *command])
            code = self.run_step(words, environment, lambda: self._end_of_training(1).failure in MENDABLE)
            if code == 0 or number == PORT_TRIES - 1 or not port_was_taken(first_log, seen):
                break
        end = self._end_of_training(code)
        dead = (*self.srun.dead_nodes, self._dead_node())
        alive = [node for node in nodes if node not in dead]
        if code and alive and not self.told:
            self._bringing = self.on_nodes.bring_logs(alive)
            if end.failure not in MENDABLE:
                # What a rank has printed is why.
                self._bringing.join()
                end = self._end_of_training(code)
        return end

    def _end_of_training(self, code: int) -> End:
        lines, status = self.srun.lines, status_or_nothing(self.run_dir)
        failed = self._node_of_failure()
        return end_of_training(code, lines, status, self.told, self.logs, failed, self._dead_node())

    def _dead_node(self) -> str | None:
        by_srun = lost_node([*self.srun.lines, *self.srun.last_lines])
        return by_srun or next(iter(self.srun.dead_nodes), None)

    def _node_of_failure(self) -> str | None:
        """The node of the rank that failed first by its own record, unless any node would have done the same."""
        first = first_failure(read_failures(self.logs), len(self.nodes.in_use) * self.nodes.ranks)
        if first is None or first["failure"] in ("nan", "data", "disk", "lease", "oom"):
            return None
        said = [*self.srun.lines, *self.srun.last_lines]
        told = (first["host"], node_of_rank(said, first["rank"]))
        return next((node for node in told if node in self.nodes.names), None)

    def run_step(
        self, words: Sequence[str], environment: Mapping[str, str], is_lost: Callable[[], bool] | None = None
    ) -> int:
        """Run a job step; its own messages are kept, and go to the batch script's log too."""
        ended = threading.Event()
        threading.Thread(target=attend, args=(self, ended), daemon=True).start()
        self.srun = Step(self.step_name, self.nodes.in_use)
        # In place a step must not wait for what Slurm still holds for the one before, on a node that is gone.
        code = self.srun.run([*(["--overlap"] if self.cause else []), *words], environment, is_lost)
        ended.set()
        return code

    def tell_to_stop(self) -> None:
        """Tell the ranks to save and stop."""
        tell_to_stop(self.job_id)

    def finish(self, end: End) -> int:
        """Note the end, and requeue the job if the run is to go on; returns the batch script's exit code."""
        with self._finishing:
            if self._code is None:
                self._code = self._end(end)
            return self._code

    def _end(self, end: End) -> int:
        if self.race and self.race.lost:
            return FINISHED
        cause = self._cause(end) if end.outcome in ("stopped", "killed") else None
        self._note_end(end, cause)
        if end.outcome == "finished":
            return FINISHED
        if end.outcome == "failed":
            tell(self.run_dir, state="failed", reason=end.reason, failure=end.failure, eta_s=None)
            return FAILED
        if cause in ENDS:
            self._end_as_told(cause)
            return FINISHED
        if cause != "preempted":
            self.on_nodes.leave_for_others()
        reason = (self.bigger if cause == "grow" else None) or end.reason
        self.in_haste = cause == "preempted" or self.told is not None
        return self.requeue(end.reason if cause == end.failure else f"{cause}: {reason}", end)

    def _note_end(self, end: End, cause: str | None) -> None:
        last = newest_step(self.run_dir)
        # A preemption is nobody's fault, as often as it happens.
        fruitless = last == self.step and (cause in ("walltime", *MENDABLE) or end.failure == "node")
        fields = {"outcome": end.outcome, "cause": cause, "step": last, "reason": end.reason, "node": end.node}
        fields = {"fruitless": fruitless, **fields, **end_of_slice(self, cause, last)}
        self.record(end=time.time(), log_end=self.log.written(), reached=reached(self.run_dir), **fields)

    def _cause(self, end: End) -> str:
        if why := told_to_end(self.run_dir):
            return why
        until = time.monotonic() + (WORD_SECONDS if "SIGTERM" in end.reason else 0)
        while (word := self.log.slurms_word()) is None and time.monotonic() < until:
            time.sleep(0.1)
        if word == "":
            return "cancelled"
        if end.failure in MENDABLE and not (word or self.told):
            return end.failure
        if self.bigger and not (word or self.told):
            return "grow"
        return "walltime" if self.clock.is_near() or word == "TIME LIMIT" else "preempted"

    def _end_as_told(self, why: str) -> None:
        tell(self.run_dir, **end_as_told(why))

    def requeue(self, reason: str, end: End) -> int:
        """Let the run go on later, as the last act of this job; returns the batch script's exit code."""
        return requeue(self, reason, end)

    def record(self, **fields: Any) -> None:
        """Add to what attempts.jsonl says of this attempt."""
        record(self.run_dir, self.number, **fields)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
