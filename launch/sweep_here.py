"""A sweep's trials on this machine: some at a time, each on a GPU of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from launch.jobs import read_job
from launch.local import PROGRAM, visible_gpus
from launch.sweep_dir import Place, SweepDir, ask_trial, finish_trial, prune
from recipes.rundir import read_status, write_status
from resnet.lease import holder_elsewhere
from resnet.signals import SIGNALS, die_with_parent
from slurm.attempts import end_file
from slurm.job import words_of

LOOK_SECONDS = 1.0
ORPHAN_SECONDS = 60.0
DONE, FAILED, STOPPED, INTERRUPTED = 0, 1, 85, 130


def train_here(directory: SweepDir, todo: Sequence[dict[str, Any]], place: Place) -> int:
    """Run trials on this machine, some at a time, each on a GPU of its own; returns the exit code."""
    return _Here(directory, list(todo), place).run()


def await_orphans(directory: SweepDir) -> None:
    """Let trials end that save and stop because the `launch` they were started by is dead."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    runs = [directory.path / trial["name"] for trial in directory.trials]
    while any(read_job(run) is None and holder_elsewhere(run) for run in runs) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)


class _Here:
    def __init__(self, directory: SweepDir, todo: list[dict[str, Any]], place: Place) -> None:
        self.directory, self.todo, self.place = directory, todo, place
        self.running: dict[subprocess.Popen[bytes], dict[str, Any]] = {}
        self.slots: dict[subprocess.Popen[bytes], int] = {}
        self.gpus = visible_gpus()
        self.received: list[int] = []
        self.passed_on = 0
        self.failed = 0
        if self.gpus and place.jobs > self.gpus:
            raise ValueError(f"--jobs {place.jobs}, but there are {self.gpus} GPUs here, one for each trial")

    def run(self) -> int:
        before = {number: signal.signal(number, lambda number, _: self.received.append(number)) for number in SIGNALS}
        try:
            while self.running or (self.todo and not self.received):
                while self.todo and len(self.running) < self.place.jobs and not self.received:
                    self._start(self.todo.pop(0))
                self._look()
                time.sleep(LOOK_SECONDS)
        finally:
            for process in self.running:
                process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.received:
            print("stopped; the same command goes on", file=sys.stderr)
            return INTERRUPTED if self.received[0] == signal.SIGINT else STOPPED
        return FAILED if self.failed else DONE

    def _start(self, trial: dict[str, Any]) -> None:
        if self.directory.is_search:
            trial = ask_trial(self.directory, trial)
        run_dir = self.directory.prepare(trial)
        slot = min(set(range(self.place.jobs)) - set(self.slots.values()))
        environment = dict(os.environ)
        if self.gpus:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[slot] if visible else str(slot)
        number = len([*run_dir.glob("logs/attempt-*")]) + 1
        logs = run_dir / "logs" / f"attempt-{number}"
        logs.mkdir(parents=True)
        with open(logs / "rank-0.log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(PROGRAM), *words_of(run_dir / "slurm" / "recipe.yaml", run_dir)],
                cwd=self.place.cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, signal.SIGTERM, os.getpid()),
            )
        self.running[process], self.slots[process] = trial, slot
        print(f"{trial['name']}: starts; {len(self.todo)} more to come", flush=True)

    def _look(self) -> None:
        """See who has ended or is to be stopped, and pass signals on."""
        while self.passed_on < len(self.received):
            for process in self.running:
                process.send_signal(signal.SIGKILL if self.passed_on else signal.SIGTERM)
            self.passed_on += 1
        for process in [process for process in self.running if process.poll() is not None]:
            self._ended(process, self.running.pop(process))
            del self.slots[process]
        if self.directory.content["early_stop"]:
            for process, trial in self.running.items():
                if prune(self.directory.path, trial["name"]):
                    process.send_signal(signal.SIGTERM)

    def _ended(self, process: subprocess.Popen[bytes], trial: Mapping[str, Any]) -> None:
        run_dir = self.directory.path / trial["name"]
        status = read_status(run_dir)
        code, pruned = process.returncode, end_file(run_dir, "pruned").exists()
        if code not in (DONE, STOPPED):
            self.failed += 1
            if status.get("state") not in ("failed", "finished"):
                log = max(run_dir.glob("logs/attempt-*/rank-0.log"), key=lambda file: file.stat().st_mtime)
                last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
                reason = f"ended with code {code}: {''.join(last)}"
                write_status(run_dir, name=run_dir.name, state="failed", reason=reason, failure="crash")
                status = read_status(run_dir)
        if pruned:
            write_status(run_dir, reason="pruned")
        finish_trial(self.directory, trial)
        best = f", best {status['best']:.4g}" if status.get("best") is not None else ""
        reason = f": {status.get('reason')}" if status.get("state") == "failed" else ""
        print(f"{trial['name']}: {'pruned' if pruned else status.get('state')}{best}{reason}", flush=True)
