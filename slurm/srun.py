"""A job step: start it, keep what srun says, and end its other tasks once one is lost. Only the standard library."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from slurm.control import said
from slurm.ends import is_bad, only_signals

SIGNAL_SECONDS = 0.5
"""From a task that was killed to the judgement: what else srun has to say of it (that memory was short)."""
RECORD_SECONDS = 1.5
"""From a task that left two seconds after it had failed: others that failed first have written it down by then."""
LEAVE_SECONDS = 30.0
"""For tasks that end by themselves after another's failure: the report, W&B's last words."""
REAP_SECONDS = 8.0
"""From the kill of a step until srun has heard of every task; of those on a node that is gone it never does."""
DEFAULT = ("--kill-on-bad-exit=0", "--wait=0")
"""Slurm's own way would give the tasks KillWait, 30 seconds by default, before it kills them."""


class Step:
    """One job step."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        """What srun said until the step was killed by us: by then only of tasks that ended by themselves."""
        self.last_lines: list[str] = []
        """What it said after that."""
        self.id: str | None = None
        """Of the step, where it was killed by us."""
        self.is_cut_off = False
        """Whether srun never heard of some task's end."""
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
            (self.last_lines if self.id else self.lines).append(line.rstrip())
            print(line, end="", file=sys.stderr, flush=True)
            if is_bad(line):
                self._moved.set()
        self._over.set()
        self._moved.set()

    def _end_the_others(self, srun: subprocess.Popen[str], is_lost: Callable[[], bool]) -> None:
        self._over.wait(SIGNAL_SECONDS if only_signals(self.lines) else RECORD_SECONDS)
        if not is_lost():
            self._over.wait(LEAVE_SECONDS)
        while not self._over.is_set():
            # As often as the controller needs to hear it.
            killed = self._kill()
            if not self._over.wait(REAP_SECONDS) and killed:
                self.is_cut_off = True
                srun.kill()
                return

    def _kill(self) -> bool:
        """End every step of the job but the batch script's, at once; returns whether Slurm took it."""
        job = os.environ["SLURM_JOB_ID"]
        names = said("squeue", "-h", "-s", "-j", job, "-o", "%i").split()
        steps = [name for name in names if name.rpartition(".")[2].isdigit()]
        if not steps:
            return False
        self.id = steps[-1]
        # By way of the controller: asked directly, a node that is ending the step lets the question wait.
        done = subprocess.run(["scancel", "--ctld", "--signal=KILL", *steps], capture_output=True)
        return done.returncode == 0


def await_controller(seconds: float) -> bool:
    """Wait until the controller answers, without which no step starts; returns whether it does."""
    deadline = time.monotonic() + seconds
    while " UP" not in said("scontrol", "ping"):
        if time.monotonic() > deadline:
            return False
        time.sleep(2)
    return True
