"""What trains a run in an allocation that a user holds, as `slurm.batch` does in a job of the run's own.

    python -m slurm.held JOBS_FILE COMMAND ...

It runs where the user is, or as a step on the first node. Only the standard library, and Python 3.9. It never requeues,
since the user holds the job, signals no step but its own, and leaves with what `train.py` would leave with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resnet.process.environment import RANK_VARIABLES
from resnet.process.exit_codes import FAILED, FINISHED, INTERRUPTED, MISTAKE, STOPPED
from resnet.process.processes import pid_namespace, started
from resnet.rundir.files import read_json, write_atomic
from resnet.rundir.status import status_or_nothing
from slurm.batch import Job, leave
from slurm.control import ask, job_state, nodes_of, nodes_that_are_gone, said
from slurm.ends import End
from slurm.nodes import Nodes
from slurm.record import tell

KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_CLUSTER_NAME", "SLURM_WORKING_CLUSTER", "SLURMD_NODENAME")
"""Of Slurm's variables; all others are the allocation's own (tasks, cores, memory), and change what srun does."""
_OTHERS = re.compile(
    r"(?:SLURM|SBATCH|SALLOC|SRUN|PMI|PMIX)\w*|(?:CUDA|ROCR|HIP|ZE)_(?:VISIBLE_DEVICES|AFFINITY_MASK)|GPU_DEVICE_ORDINAL"
)
"""Those, and the devices of this machine, which srun gives to each node anew."""
ALIVE = ("RUNNING", "SUSPENDED", "CONFIGURING")


STALE_SECONDS = 60.0
"""After which one that trains a run, and is not seen from here, is dead if it has given no sign."""
_SUPERVISOR = "supervisor"


class OwnStep(NamedTuple):
    """A job step of a run."""

    id: str
    """As scancel takes it: 12.3."""
    run: str
    """As `steps_name` gives it."""
    nodes: str
    trains: bool
    """Whether the run trains in it, or is about to; else its supervisor is in it."""


def clean(environment: Mapping[str, str], number: str, job_id: str, kept: Sequence[str] = ()) -> dict[str, str]:
    """A process's environment, of which srun reads but what job it is in.

    number, job_id: the job's, by its two names. kept: variables that stay, whatever they are called.
    """
    kept = (*KEPT, *kept)
    left = {key: value for key, value in environment.items() if key in kept or not _OTHERS.fullmatch(key)}
    left = {key: value for key, value in left.items() if key not in RANK_VARIABLES}
    left["SLURM_JOB_ID"] = number
    array, _, task = job_id.partition("_")
    return left | ({"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": task} if task else {})


def steps_name(run_dir: Path) -> str:
    """What the names of a run's steps begin with: another run of its name, in another folder, has another one."""
    place = os.path.realpath(run_dir)
    return f"{run_dir.name}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}"


def supervisors_name(run: str) -> str:
    """Of the step in which a run's supervisor is, where it is one. run: as `steps_name` gives it."""
    return f"{run}/{_SUPERVISOR}"


def own_steps(job_id: str, client: Mapping[str, str] | None = None) -> list[OwnStep]:
    """Those of all runs in an allocation. Raises ValueError where Slurm does not answer.

    client: as `slurm.control.ask` takes it, here and below.
    """
    found = []
    for line in ask(["squeue", "-h", "-s", "-j", job_id, "-o", "%i|%N|%j"], client=client).splitlines():
        step, nodes, name = line.strip().split("|", 2)
        run, slash, what = name.rpartition("/")
        if slash and re.fullmatch(rf"attempt-\d+|prepare|{_SUPERVISOR}", what):
            found.append(OwnStep(step, run, nodes, what != _SUPERVISOR))
    return found


def signal_steps(
    job_id: str, run: str, name: str, by_controller: bool = False, client: Mapping[str, str] | None = None
) -> bool:
    """Send a signal to the ranks of a run, and to nothing else in the job; returns whether there were any.

    run: as `steps_name` gives it.
    by_controller: not asked directly, a node that is ending the step lets the question wait. Raises ValueError.
    """
    steps = [step.id for step in own_steps(job_id, client) if step.run == run and step.trains]
    if steps:
        with contextlib.suppress(ValueError):
            # Where they have ended meanwhile.
            ask(["scancel", *(["--ctld"] if by_controller else []), f"--signal={name}", *steps], client=client)
    return bool(steps)


class HeldNodes(Nodes):
    """Nodes of which srun is always told: what the allocation was asked for says nothing of how a run uses it."""

    @property
    def kept(self) -> list[str]:
        # What trains the run need not be on the first.
        return self.good

    def only(self, nodes: Sequence[str]) -> list[str]:
        return [f"--nodes={len(nodes)}", f"--nodelist={','.join(nodes)}"]


class Held(Job):
    """A run in an allocation that a user holds."""

    def __init__(self, jobs: dict[str, Any], run_dir: Path) -> None:
        super().__init__(jobs, run_dir)
        self._began, self.interrupts = time.time(), 0

    def listen(self) -> None:
        super().listen()
        # Of a terminal that was closed.
        signal.signal(signal.SIGHUP, self._note)

    def _all_nodes(self) -> Nodes:
        return HeldNodes(self.jobs["held"]["nodes"], self.jobs["nodes"], self.jobs["local_ranks"])

    @property
    def step_name(self) -> str:
        return f"{self.jobs['held']['steps']}/{self.logs.name}"

    def run_step(
        self, words: Sequence[str], environment: Mapping[str, str], is_lost: Callable[[], bool] | None = None
    ) -> int:
        # What the user runs beside, as the shell of `srun --pty`, may hold all there is.
        ours = ["--overlap", "--mem=0", f"--job-name={self.jobs['held']['steps']}/prepare"]
        return super().run_step([*ours, *words], environment, is_lost)

    def why_to_stop(self) -> str | None:
        # Slurm tells the steps of a user's job nothing of its end.
        if not self.told and self._is_ending():
            self.told = "the allocation's time limit"
        why = super().why_to_stop() or self.told
        if why and self.stop_asked is None:
            self.stop_asked = time.time()
        return why

    def _is_ending(self) -> bool:
        left = self.clock.left()
        if left is None or left > self.clock.lead:
            return False
        # Its holder may have got more time meanwhile.
        self.clock.ask()
        left = self.clock.left()
        return left is not None and left <= self.clock.lead

    def tell_to_stop(self) -> None:
        self._signal("USR2")

    def _signal(self, name: str, by_controller: bool = False) -> None:
        try:
            signal_steps(self.job_id, self.jobs["held"]["steps"], name, by_controller)
        except ValueError as error:
            print(f"the ranks are not told to stop: {error}", file=sys.stderr)

    def _note(self, number: int, _: Any) -> None:
        super()._note(number, _)
        self.interrupts += number == signal.SIGINT
        if self.interrupts > 1:
            threading.Thread(target=self._signal, args=("KILL", True), daemon=True).start()

    def _why_not(self) -> str | None:
        # Whoever starts it by hand starts it anew.
        self.before = [attempt for attempt in self.before if attempt["start"] >= self._began]
        return super()._why_not()

    def kept_without(self, node: str) -> list[str]:
        # A node that works stays the user's. With one that is gone Slurm would end the job, of which all others, also
        # those on which this run does not train, stay.
        if node not in self.srun.dead_nodes and not nodes_that_are_gone([node]):
            return []
        every = nodes_of(self.job_id)
        return [name for name in every if name != node] if node in every else []

    def _end_of_training(self, code: int) -> End:
        end = super()._end_of_training(code)
        if end.outcome in ("finished", "stopped"):
            return end
        state = job_state(self.job_id)
        if state in ALIVE or (state is None and " UP" not in said("scontrol", "ping")):
            return end
        return End("killed", f"the allocation has ended ({state or 'gone'})")

    def _cause(self, end: End) -> str:
        cause = super()._cause(end)
        return "interrupted" if cause == "preempted" and self.told else cause

    def requeue(self, reason: str, end: End) -> int:
        tell(self.run_dir, state="stopped", reason=reason, failure=end.failure, eta_s=None)
        return STOPPED


def this_process() -> dict[str, Any]:
    """By which `is_there` finds it."""
    return {"place": pid_namespace(), "pid": os.getpid(), "began": started(os.getpid()), "time": time.time()}


def is_there(told: Mapping[str, Any]) -> bool:
    """Whether a process lives, as far as can be seen from here. told: what it said of itself by `this_process`."""
    if told.get("place") == pid_namespace():
        return told.get("began") is not None and started(told.get("pid", 0)) == told["began"]
    return time.time() - told.get("time", 0) < STALE_SECONDS


def note_supervisor(run_dir: Path, listens: bool) -> None:
    """Write down that this process trains a run in an allocation, or is about to start what does.

    listens: whether it can be told to stop.
    """
    write_atomic(_supervisor_file(run_dir), json.dumps({**this_process(), "listens": listens}))


def give_sign(run_dir: Path) -> None:
    """Say that what trains a run in an allocation is there, to those who do not see its process."""
    with contextlib.suppress(OSError):
        os.utime(_supervisor_file(run_dir))


def listens(run_dir: Path) -> bool:
    """Whether what trains a run in an allocation has begun, so that it can be told to stop."""
    return bool(_supervisor(run_dir).get("listens"))


def is_supervised(run_dir: Path) -> bool:
    """Whether what trains a run in an allocation is there, as far as can be seen from here."""
    return is_there(_supervisor(run_dir))


def _supervisor(run_dir: Path) -> dict[str, Any]:
    file = _supervisor_file(run_dir)
    with contextlib.suppress(OSError, ValueError):
        return {**read_json(file), "time": file.stat().st_mtime}
    return {}


def _supervisor_file(run_dir: Path) -> Path:
    return run_dir / "slurm" / "held.json"


def exit_code(run_dir: Path, interrupts: int) -> int:
    """What `train.py` leaves with where a run has ended so."""
    status = status_or_nothing(run_dir)
    if status.get("state") == "stopped":
        return INTERRUPTED if interrupts > 1 else STOPPED
    if status.get("state") == "finished":
        return FINISHED
    return MISTAKE if status.get("failure") == "mistake" else FAILED


def main(argv: Sequence[str]) -> int:
    jobs = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    run_dir = Path(jobs["runs"][0])
    held = jobs["held"]
    environment = clean(os.environ, held["number"], held["job_id"], held["environment"])
    os.environ.clear()
    os.environ.update(environment)
    job = Held(jobs, run_dir)
    job.listen()
    note_supervisor(run_dir, listens=True)
    job.run(argv[1:])
    leave(job)
    return exit_code(run_dir, job.interrupts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
