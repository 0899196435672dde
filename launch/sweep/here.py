"""A sweep's trials on this machine: some at a time, each on a GPU of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from launch.runs.here import own_environment, visible_gpus
from launch.runs.job_record import job_file, read_job
from launch.sweep.directory import Place, SweepDir, cancel_file
from launch.sweep.halving import is_pruned
from launch.sweep.page import write_page
from launch.sweep.trial_life import ask_trial, finish_trial, note_mistake, prune
from resnet.process.command_lines import TRAIN
from resnet.process.environment import CORES, usable
from resnet.process.exit_codes import FAILED, FINISHED, INTERRUPTED, STOPPED
from resnet.process.signals import SIGNALS, die_with_parent
from resnet.rundir.lease import holder_elsewhere
from resnet.rundir.status import read_status, write_status
from slurm.job import words_of

LOOK_SECONDS = 1.0
ORPHAN_SECONDS = 60.0


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
        self.failed = self.stopped = 0
        asked = place.parallel if isinstance(place.parallel, int) else 1
        self.most = min(asked, self.gpus or asked)
        self.at_once = max(1, min(self.most, len(todo)))
        if self.most < min(asked, len(todo)):
            print(
                f"--parallel {asked}: GPUs here: {self.gpus}, one for each trial, so {self.most} at a time", flush=True
            )

    def run(self) -> int:
        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in before.items():
            # nohup has SIGHUP ignored.
            if handler != signal.SIG_IGN:
                signal.signal(number, lambda number, _: self.received.append(number))
        cancel_file(self.directory.path).unlink(missing_ok=True)
        try:
            while self.running or (self.todo and not self._is_over()):
                while self.todo and len(self.running) < self.at_once and not self._is_over():
                    self._start(self.todo.pop(0))
                self._look()
                time.sleep(LOOK_SECONDS)
        finally:
            for process in self.running:
                process.terminate()
            for process in self.running:
                process.wait()
            # A signal that comes now does not cut it short.
            write_page(self.directory.path)
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.received:
            print("stopped; run the same command to continue", file=sys.stderr)
            return INTERRUPTED if self.received[0] == signal.SIGINT else STOPPED
        return FAILED if self.failed else STOPPED if self.stopped else FINISHED

    def _is_over(self) -> bool:
        return bool(self.received) or cancel_file(self.directory.path).exists()

    def _start(self, trial: dict[str, Any]) -> None:
        try:
            if self.directory.is_search:
                trial = ask_trial(self.directory, trial)
            run_dir = self.directory.prepare(trial)
        except ValueError as error:
            self.failed += 1
            note_mistake(self.directory, trial, error)
            print(f"{trial['name']}: failed: {error}", flush=True)
            return
        # Of an earlier time, when it was sent to Slurm.
        job_file(run_dir).unlink(missing_ok=True)
        slot = min(set(range(self.at_once)) - set(self.slots.values()))
        # By what was asked for, not by how many are left: other threads round otherwise, and a trial that is continued
        # is to end as it would have.
        environment = own_environment() | {CORES: str(max(1, usable() // self.most))}
        if self.gpus:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[slot].strip() if visible else str(slot)
        number = len([*run_dir.glob("logs/attempt-*")]) + 1
        logs = run_dir / "logs" / f"attempt-{number}"
        logs.mkdir(parents=True, exist_ok=True)
        with open(logs / "rank-0.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(TRAIN), *words_of(run_dir / "slurm" / "recipe.yaml", run_dir)],
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
            # As in a run: only a second Ctrl-C does not wait for the checkpoint.
            again = self.received[: self.passed_on + 1].count(signal.SIGINT) > 1
            for process in self.running:
                process.send_signal(signal.SIGKILL if again else signal.SIGTERM)
            self.passed_on += 1
        for process in [process for process in self.running if process.poll() is not None]:
            trial = self.running.pop(process)
            del self.slots[process]
            with _told(trial):
                self._ended(process, trial)
        if self.directory.content["early_stop"]:
            for process, trial in self.running.items():
                with _told(trial):
                    if prune(self.directory.path, trial["name"]):
                        process.send_signal(signal.SIGTERM)

    def _ended(self, process: subprocess.Popen[bytes], trial: Mapping[str, Any]) -> None:
        run_dir = self.directory.path / trial["name"]
        status = read_status(run_dir)
        code, pruned = process.returncode, is_pruned(run_dir, status.get("state"))
        self.stopped += code == STOPPED and not pruned
        if code not in (FINISHED, STOPPED):
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


@contextlib.contextmanager
def _told(trial: Mapping[str, Any]) -> Iterator[None]:
    """Trouble with one trial's files is told, and does not end the others."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"{trial['name']}: {error}", file=sys.stderr, flush=True)
