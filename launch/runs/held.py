"""A run in an allocation that its user holds: started there, and, from a terminal inside of it, shown and stopped."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from launch.runs.given import giving
from launch.runs.job_record import Job
from launch.runs.logs import log_file, tail
from launch.runs.requests import Place
from resnet.process.environment import job_id as own_job_id
from resnet.process.exit_codes import FAILED, INTERRUPTED, STOPPED
from resnet.process.processes import kill_all
from resnet.process.signals import SIGNALS, die_with_parent
from resnet.rundir.attempts import end_as_told, end_file
from resnet.rundir.lease import RENEW_SECONDS
from resnet.rundir.status import status_or_nothing, write_status
from slurm.allocation import Allocation, Fit, NotHeld, fit, read_allocation
from slurm.control import client_environment
from slurm.held import (
    clean,
    give_sign,
    listens,
    note_supervisor,
    own_steps,
    signal_steps,
    steps_name,
    supervisors_name,
)
from slurm.profile import load_profile
from slurm.sbatch import SlurmError, Submission, write_held

_STEP = 'exec </dev/null >>"$1" 2>&1; touch "$2"; exec bash "$3"'
NAME = "held"
"""What stands for a cluster's name in the record of a run for which none was given."""
LOOK_SECONDS = 1.0
"""From one look for the log of another attempt to the next, on a disk that others use too."""
START_SECONDS = 60
"""For a step to start in an allocation that is there already."""


def held_here() -> str | None:
    """The job that this process is in, where that has srun to train on its nodes by; else None.

    Raises ValueError in a task of several, each of which would train the same.
    """
    job_id = own_job_id()
    if job_id is None:
        return None
    if shutil.which("srun") is None:
        print(f"no srun here, so that of job {job_id} only this machine is used", file=sys.stderr)
        return None
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks != "1" and not sys.stdin.isatty():
        raise ValueError(f"this is one of {tasks} tasks of srun, and one is enough: leave srun out")
    return job_id


@dataclass
class Holding:
    """An allocation, and what of it a run is given."""

    place: Place
    allocation: Allocation
    fit: Fit
    attended: bool
    """Whether the run is this process's to stop: it ends with it."""
    note: str
    """By which what the run was given is written down."""
    debug: bool = False
    """Whether mistakes of the ranks are to be shown with their traceback."""
    supervisor: subprocess.Popen[bytes] | None = None
    printed: _Printed | None = None
    """Of one that is attended."""

    @classmethod
    def of(
        cls,
        job_id: str,
        cluster: str | None,
        overrides: Sequence[str],
        attended: bool,
        gpus: int | None = None,
        cpu_ranks: int | None = None,
        before: Mapping[str, Any] | None = None,
    ) -> Holding:
        """Raises ValueError where the job is not held by this user, or has not what is asked for.

        before: the profile that the run was sent with, in the place of the cluster's.
        """
        base = before or (load_profile(cluster).model_dump() if cluster else {})
        client = base.get("client", {})
        try:
            allocation = read_allocation(job_id, client)
        except NotHeld as error:
            if not attended:
                raise
            raise ValueError(
                f"{error}; this shell has it in SLURM_JOB_ID: once the job is over, `unset SLURM_JOB_ID`, or --here of "
                "`launch local`, has this machine train"
            ) from None
        with giving(allocation) as given:
            taken = given.taken(own_steps(allocation.job_id, client))
            found = fit(allocation, base, overrides, gpus, cpu_ranks, taken)
            note = given.give(node.name for node in found.nodes)
        return cls(Place(cluster or NAME, found.profile), allocation, found, attended, note)

    def start(self, submission: Submission, job: Job) -> Job:
        """Start what trains the run of a submission; returns its record. Raises SlurmError where it does not."""
        profile, allocation = self.fit.profile, self.allocation
        [run_dir] = submission.runs
        steps = steps_name(run_dir)
        with giving(allocation) as given:
            given.name(self.note, run_dir, steps)
        held = {
            "steps": steps,
            "job_id": allocation.job_id,
            "number": allocation.number,
            "nodes": [node.name for node in self.fit.nodes],
            "node_cores": min(node.cpus for node in self.fit.nodes),
            "environment": [*profile.environment, *profile.client],
        }
        script = write_held(replace(submission, supervisor="slurm.held"), held, is_here=self.attended, debug=self.debug)
        log = submission.folder / f"{allocation.job_id}_held_log.out"
        environment = client_environment(profile.client)
        environment = clean(environment, allocation.number, allocation.job_id, list(profile.client))
        note_supervisor(run_dir, listens=False)
        (self._start_here if self.attended else self._start_there)(script, environment, run_dir, log)
        return replace(job, job_id=allocation.job_id, name=allocation.name, held=True, steps=steps)

    def _start_here(self, script: Path, environment: dict[str, str], run_dir: Path, file: Path) -> None:
        self.printed = _Printed(run_dir, file)
        with open(file, "ab") as log:
            self.supervisor = subprocess.Popen(
                ["bash", str(script)],
                env=environment,
                start_new_session=True,
                preexec_fn=partial(_begin, os.getpid()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _start_there(self, script: Path, environment: dict[str, str], run_dir: Path, log: Path) -> None:
        """As a step on the first node, which outlives this machine's session, and this machine."""
        where = [f"--jobid={self.allocation.number}", "--nodes=1", f"--nodelist={self.fit.nodes[0].name}", "--ntasks=1"]
        where += ["--overlap", "--overcommit", "--mem=0", "--cpus-per-task=1", "--gres=none"]
        quiet = ["--output=none", "--error=none", "--input=none", f"--job-name={supervisors_name(steps_name(run_dir))}"]
        begun = script.with_suffix(".begun")
        begun.unlink(missing_ok=True)
        command = ["bash", "-c", _STEP, "bash", str(log), str(begun), str(script)]
        srun = subprocess.Popen(
            ["srun", *where, *quiet, *command],
            env=environment,
            start_new_session=True,
            preexec_fn=_begin,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + START_SECONDS
        # What the profile's set-up takes beyond that is not waited for.
        while srun.poll() is None and time.monotonic() < deadline and not listens(run_dir):
            time.sleep(0.1)
        is_there = listens(run_dir) or (srun.poll() is None and begun.exists())
        # With the helper that would end the step for it, at once: the step needs neither, and goes on.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(srun.pid, signal.SIGKILL)
        said = srun.communicate()[1].decode(errors="replace").splitlines()
        if not is_there:
            why = [*said, *tail(log, 3)] or [f"nothing began within {START_SECONDS} s"]
            raise SlurmError("\n  ".join([f"job {self.allocation.job_id} does not start it:", *why]))

    def withdraw(self, run_dir: Path) -> None:
        """End what was just started."""
        stop(run_dir, self.allocation.job_id, steps_name(run_dir), at_once=False, client=self.fit.profile.client)
        print(f"\n{run_dir.name} is told to end; job {self.allocation.job_id} stays yours", file=sys.stderr)


def stop(run_dir: Path, job_id: str, steps: str, at_once: bool, client: Mapping[str, str]) -> None:
    """Let a run in an allocation save and end, or kill it, and leave the allocation. Raises ValueError.

    steps: what the names of its steps begin with.
    """
    # The supervisor sees it, and tells the ranks, should they not listen yet.
    end_file(run_dir, "cancelled").touch()
    signal_steps(job_id, steps, "KILL" if at_once else "USR2", by_controller=at_once, client=client)
    if at_once:
        write_status(run_dir, **end_as_told("cancelled"))


def _begin(parent: int | None = None) -> None:
    """In a process that is about to be a supervisor: hear signals, which are held back while a run is sent."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if parent:
        die_with_parent(signal.SIGTERM, parent)


def attend(holding: Holding, run_dir: Path, received: list[int]) -> int:
    """Show what the first rank prints, and pass on what is received, until the run has ended; returns its exit code."""
    supervisor, printed = holding.supervisor, holding.printed
    assert supervisor is not None
    assert printed is not None
    told = time.monotonic()
    while supervisor.poll() is None:
        if time.monotonic() - told > RENEW_SECONDS:
            told = time.monotonic()
            give_sign(run_dir)
        while received:
            number = received.pop(0)
            if not listens(run_dir):
                return _stop_before(supervisor, run_dir, number)
            with contextlib.suppress(ProcessLookupError):
                supervisor.send_signal(number)
            # Two that come at once would be one.
            time.sleep(0.1)
        printed.show()
        with contextlib.suppress(subprocess.TimeoutExpired):
            supervisor.wait(0.2)
    printed.show(is_over=True)
    if supervisor.returncode < 0:
        number = signal.Signals(-supervisor.returncode)
        print(f"what trains the run was killed ({number.name}); its ranks save and end", file=sys.stderr)
        signal_steps(holding.allocation.job_id, steps_name(run_dir), "USR2", client=holding.fit.profile.client)
        return FAILED
    if status_or_nothing(run_dir).get("state") == "queued":
        reason = "it could not be started: " + " ".join(tail(printed.log, 1))
        write_status(run_dir, state="failed", reason=reason, failure="crash")
    return supervisor.returncode


def _stop_before(supervisor: subprocess.Popen[bytes], run_dir: Path, number: int) -> int:
    kill_all(supervisor)
    write_status(run_dir, state="stopped", reason="stopped before it began", failure=None)
    print("stopped before the training began", file=sys.stderr)
    return INTERRUPTED if number == signal.SIGINT else STOPPED


class _Printed:
    """What a run prints from now on: the first rank's words to standard output, the supervisor's to standard error."""

    def __init__(self, run_dir: Path, log: Path) -> None:
        self._run_dir, self.log = run_dir, log
        self._seen: dict[Path, int] = {}
        self._first, self._made, self._looked = log_file(run_dir, 0), 0.0, 0.0
        """The first rank's log, when an attempt's folder was last made, and when that was last looked for."""
        for file in (log, self._first):
            if file and file.exists():
                self._seen[file] = file.stat().st_size

    def show(self, is_over: bool = False) -> None:
        """is_over: whether nothing is printed any more."""
        self._copy(self.log, sys.stderr.buffer)
        self._copy_first()
        if is_over or time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked = time.monotonic()
            if is_over or self._may_be_another():
                self._first = log_file(self._run_dir, 0)
                self._copy_first()

    def _may_be_another(self) -> bool:
        """Whether an attempt has begun whose log is not the one that is shown."""
        before = self._made
        with contextlib.suppress(OSError):
            self._made = os.stat(self._run_dir / "logs").st_mtime
        # In the place of a rank's there is first that of what brings it its data.
        return self._made != before or self._first is None or not self._first.name.startswith("rank-")

    def _copy_first(self) -> None:
        if self._first:
            self._copy(self._first, sys.stdout.buffer)

    def _copy(self, file: Path, to: BinaryIO) -> None:
        with contextlib.suppress(OSError), open(file, "rb") as log:
            log.seek(self._seen.get(file, 0))
            if text := log.read():
                self._seen[file] = log.tell()
                to.write(text)
                to.flush()
