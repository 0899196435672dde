"""A job step: start it, keep what srun says, and end its other tasks once one is lost. Only the standard library."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from resnet.process.environment import job_id
from slurm.control import PATIENT_SECONDS, ask, nodes_that_are_gone, said
from slurm.ends import fates, is_bad, only_signals
from slurm.patience import pauses

SIGNAL_SECONDS = 0.5
"""From a task that was killed to the judgement: what else srun has to say of it (that memory was short)."""
RECORD_SECONDS = 1.5
"""From a task that left two seconds after it had failed: others that failed first have written it down by then."""
LEAVE_SECONDS = 30.0
"""For tasks that end by themselves after another's failure: the report, W&B's last words."""
REAP_SECONDS = 8.0
"""From the kill of a step until srun has heard of every task; of those on a node that is gone it never does."""
DEATH_SECONDS = 120.0
"""For tasks that die slowly, as those that a GPU holds; Slurm itself waits for 60 (UnkillableStepTimeout)."""
DEFAULT = ("--kill-on-bad-exit=0", "--wait=0")
"""Slurm's own way would give the tasks KillWait, 30 seconds by default, before it kills them."""


class Step:
    """One job step.

    name: that srun is told to give it, by which it is known where it is to be killed. nodes: that it runs on.
    """

    def __init__(self, name: str = "", nodes: Sequence[str] = ()) -> None:
        self.name, self.nodes = name, nodes
        self.lines: list[str] = []
        """What srun said until the step was killed by us: by then only of tasks that ended by themselves."""
        self.last_lines: list[str] = []
        """What it said after that."""
        self.dead_nodes: list[str] = []
        """Those of whose tasks srun never heard, since they are gone."""
        self._is_killed = False
        self._moved, self._over = threading.Event(), threading.Event()

    def run(
        self, words: Sequence[str], environment: Mapping[str, str], is_lost: Callable[[], bool] | None = None
    ) -> int:
        """Returns srun's exit code.

        is_lost: asked when a task has ended badly: whether there is nothing to wait for, so that the others are to be
        killed at once. None: they are left alone.
        """
        srun = subprocess.Popen(
            ["srun", *words],
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        reader = threading.Thread(target=self._read, args=(srun,), daemon=True)
        reader.start()
        # Also when srun is over.
        self._moved.wait()
        if is_lost and not self._over.is_set():
            self._end_the_others(srun, is_lost)
        code = srun.wait()
        # Its helper process may hold the pipe for longer.
        reader.join(REAP_SECONDS)
        return code

    def _read(self, srun: subprocess.Popen[str]) -> None:
        assert srun.stderr is not None
        for line in srun.stderr:
            (self.last_lines if self._is_killed else self.lines).append(line.rstrip())
            print(line, end="", file=sys.stderr, flush=True)
            if is_bad(line):
                self._moved.set()
        self._over.set()
        self._moved.set()

    def _end_the_others(self, srun: subprocess.Popen[str], is_lost: Callable[[], bool]) -> None:
        self._over.wait(SIGNAL_SECONDS if only_signals(self.lines) else RECORD_SECONDS)
        if not is_lost():
            self._over.wait(LEAVE_SECONDS)
        deadline = None
        while not self._over.is_set():
            # As often as the controller needs to hear it.
            if self._kill() and deadline is None:
                deadline = time.monotonic() + DEATH_SECONDS
            if self._over.wait(REAP_SECONDS) or deadline is None:
                continue
            is_late = time.monotonic() > deadline
            self.dead_nodes = self._dead_nodes(is_late)
            if self.dead_nodes or is_late:
                srun.kill()
                return

    def _dead_nodes(self, is_late: bool) -> list[str]:
        """The nodes of whose tasks srun has not heard and that are gone by Slurm's word, or, late, by their silence."""
        heard = {fate.node for fate in fates([*self.lines, *self.last_lines])}
        silent = [node for node in self.nodes if node not in heard]
        # Where this script runs, the node lives.
        others = [node for node in silent if node != os.environ.get("SLURMD_NODENAME")]
        gone = nodes_that_are_gone(others)
        return others if not gone and is_late and len(silent) == 1 and len(self.nodes) > 1 else gone

    def _kill(self) -> bool:
        """End the step at once, and no other of the job or of its array; returns whether Slurm took it."""
        job = job_id()
        assert job, "a batch script runs in a job"
        lines = said("squeue", "-h", "-s", "-j", job, "-o", "%i %j").splitlines()
        steps = [step for step, _, name in (line.strip().partition(" ") for line in lines) if name == self.name]
        if not steps:
            return False
        self._is_killed = True
        # By way of the controller: asked directly, a node that is ending the step lets the question wait.
        try:
            ask(["scancel", "--ctld", "--signal=KILL", *steps], PATIENT_SECONDS)
        except ValueError:
            return False
        return True


def await_controller(seconds: float, must_end: Callable[[], bool]) -> bool:
    """Wait until the controller answers, without which no step starts; returns whether it does.

    must_end: asked meanwhile whether to wait no longer.
    """
    deadline = time.monotonic() + seconds
    for pause in pauses(most=15):
        if " UP" in said("scontrol", "ping"):
            return True
        until = time.monotonic() + pause
        while time.monotonic() < until:
            if time.monotonic() > deadline or must_end():
                return False
            time.sleep(1)
    return False
