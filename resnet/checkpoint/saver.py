"""When to save, and the thread that writes while training goes on."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recipes.plan import Plan
from recipes.save_interval import OFTEN, interval
from resnet.checkpoint import commit as checkpoint
from resnet.checkpoint.commit import commit, prune
from resnet.checkpoint.snapshot import EMA, MODEL, Snapshot
from resnet.checkpoint.stopwatch import Stopwatch
from resnet.replicas import check_replicas
from resnet.rundir.files import write_atomic
from resnet.rundir.lease import Lease
from resnet.state import TrainState, networks
from resnet.weights_file import metadata_of

MOST_FAILURES = 3
"""Saves in a row that may fail (disk full, no permission) before the run stops."""


class Saver:
    """Saves the state of a run; every rank calls `save` at the same step, rank 0 writes."""

    def __init__(
        self,
        run_dir: Path,
        plan: Plan,
        classes: Sequence[str],
        facts: dict[str, Any],
        lease: Lease | None,
        writes: bool,
    ) -> None:
        self.folder, self.plan, self.classes = run_dir / "checkpoints", plan, classes
        self.facts, self.lease, self.writes = facts, lease, writes
        self.settings = plan.recipe.checkpoint
        self.saved_step = -1
        self.committed_time: float | None = None
        self.failures = 0
        self.problem = ""
        """Why the last save failed."""
        self.stall = 0.0
        """Seconds the last save held up training."""
        self._snapshot = Snapshot()
        self._thread: threading.Thread | None = None
        self._job: tuple[int, int | None, Path | None] | None = None
        self._last = time.monotonic()
        self._stopwatch: Stopwatch | None = None
        self._written = 0
        self._interval = 0.0
        """Seconds, with checkpoint.every=auto; at first it is saved at once, to see what that costs."""
        self.note = ""
        """How often that is, once it is known."""
        self.on_commit: Callable[[int], None] | None = None
        """Told of the step of each checkpoint that is there, by the thread that wrote it."""

    def due(self, step: int) -> bool:
        """Whether a save is due after a step by steps or epochs; the same on all ranks."""
        if self._archive(step):
            return True
        every = self.settings.every
        if every.unit in ("minutes", "auto"):
            return False
        length = every.value * (self.plan.steps_per_epoch if every.unit == "epochs" else 1)
        return step % int(length) == 0

    def due_by_time(self) -> bool:
        """Whether a save is due by this rank's clock."""
        every, elapsed = self.settings.every, time.monotonic() - self._last
        if every.unit == "auto":
            # By the clock of the rank that writes, which alone knows how long that takes.
            return self.writes and elapsed >= self._interval and not (self._thread and self._thread.is_alive())
        return every.unit == "minutes" and elapsed >= 60 * every.value

    def save(self, state: TrainState, log_length: int | None, wait: bool = False) -> None:
        """Copy the state and write it in the background; `wait` until it is on disk, or has failed.

        Called again for the same step with `wait`, where writing failed, it tries once more.
        log_length: bytes of metrics.jsonl that are on disk; None where they are not all there, which fails the save.

        Raises FloatingPointError where weights are not finite, and SilentCorruption where the ranks' are not the same:
        such a state is never saved.
        """
        start = time.perf_counter()
        if state.step != self.saved_step:
            self.wait()
            self._stopwatch = Stopwatch(state.window.device)
            check_replicas(state)
            self._snapshot.take(state, {**self.facts, "log_length": log_length})
            self._stopwatch.stop()
            self.saved_step, self._last = state.step, time.monotonic()
            self._job = (state.step, state.best_step, self._archive(state.step))
            self._start()
        elif wait:
            self.wait()
            if self.failures and self.writes:
                self._snapshot.rest["log_length"] = log_length
                self._start()
        if wait:
            self.wait()
        self.stall = time.perf_counter() - start

    def _start(self) -> None:
        if self.writes and self._job:
            self._thread = threading.Thread(target=self._write, args=self._job, name="checkpoint", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def mark_best(self, step: int) -> None:
        """Let `best` name the checkpoint of a step, once it is there."""
        self.wait()
        if self.writes and (self.folder / checkpoint.name_of(step)).is_dir():
            try:
                write_atomic(self.folder / "best", checkpoint.name_of(step) + "\n")
            except OSError as error:
                print(f"could not write {self.folder / 'best'}: {error.strerror}", file=sys.stderr, flush=True)

    def _archive(self, step: int) -> Path | None:
        every = self.settings.weights_every
        if not every or step % (every * self.plan.steps_per_epoch):
            return None
        return self.folder.parent / "weights" / f"epoch-{step // self.plan.steps_per_epoch:04d}.safetensors"

    def _write(self, step: int, best_step: int | None, archive: Path | None) -> None:
        files: dict[str, bytes] = {}
        begun = time.perf_counter()
        try:
            if self.lease is not None and not self.lease.check():
                raise OSError("another process has taken the run over")
            if self._snapshot.rest["log_length"] is None:
                raise OSError(self.problem)
            files = self._snapshot.files(metadata_of(self.plan.recipe, self.classes, step))
            if archive:
                # Before the checkpoint: a run that goes on from that would not come by here again.
                archive.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(archive, files.get(EMA, files[MODEL]))
            facts = {"epoch": self.plan.epoch(step), "recipe": self.facts["digest"], "data": self.facts.get("data")}
            commit(self.folder, step, files, facts)
            prune(self.folder, step, self.settings.keep, best_step)
            self.failures, self.committed_time = 0, time.time()
            if self.on_commit:
                self.on_commit(step)
            self._settle_interval(time.perf_counter() - begun)
        except Exception as error:
            # Of any kind: what ends this thread would otherwise let the run go on without checkpoints.
            self.failures += 1
            self._interval = max(self._interval, OFTEN)
            self.problem = getattr(error, "strerror", None) or str(error) or type(error).__name__
            needed = sum(map(len, files.values()))
            told = _explain(self.problem, self.folder, needed, self.failures, MOST_FAILURES)
            print(told, file=sys.stderr, flush=True)

    def _settle_interval(self, writing: float) -> None:
        """After a save that took so many seconds to write; the first one's memory is made as it is taken."""
        self._written += 1
        if self._written < 2 or self._stopwatch is None or self.settings.every.unit != "auto":
            return
        stall, before = self._stopwatch.seconds(), self._interval
        self._interval = interval(stall, writing, self.plan.world_size)
        if not before:
            cost = f"a save holds training up for {1e3 * stall:.3g} ms and is written in {writing:.2g} s"
            self.note = f"checkpoint.every=auto: each {self._interval:.0f} s ({cost})"


def _explain(problem: str, folder: Path, needed: int, failures: int, most: int) -> str:
    try:
        free = f"{shutil.disk_usage(existing(folder)).free / 1e6:.0f} MB free"
    except OSError:
        free = "free space unknown"
    needs = f"it needs {needed / 1e6:.0f} MB, " if needed else ""
    return (
        f"COULD NOT SAVE a checkpoint to {folder}: {problem} ({needs}{free}). "
        f"The one before is intact; the next is tried when due (failure {failures} of {most} in a row)."
    )


def existing(path: Path) -> Path:
    """The path itself or the nearest folder above that exists."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def check_space(run_dir: Path, state: TrainState, keep: int) -> None:
    """Raise ValueError where the disk cannot hold what the recipe asks to keep, the optimizer's moments counted."""
    weights = sum(t.numel() * t.element_size() for network in networks(state) for t in network.state_dict().values())
    options = state.optimizer.defaults
    of_rmsprop = 1 + (options.get("momentum", 0) > 0) + options.get("centered", False)
    moments = {"SGD": 1, "Lars": 1, "RMSprop": of_rmsprop}.get(type(state.optimizer).__name__, 2)
    trained = sum(p.numel() * p.element_size() for group in state.optimizer.param_groups for p in group["params"])
    needed = (weights + moments * trained) * (keep + 2)
    place = existing(run_dir)
    free = shutil.disk_usage(place).free
    # What a run that goes on has there already is part of what it needs.
    there = sum(file.stat().st_size for file in (run_dir / "checkpoints").glob("step-*/*"))
    if free + there < needed:
        more = " more" if there else ""
        raise ValueError(
            f"{place} has {free / 1e6:.0f} MB free, and {keep} checkpoints, the best and one being written need "
            f"{(needed - there) / 1e6:.0f} MB{more}: choose another run.root or a smaller checkpoint.keep"
        )
    if not os.access(place, os.W_OK):
        raise ValueError(f"cannot write to {place}: choose another run.root")
