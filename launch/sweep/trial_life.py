"""A trial's life beside its training: its point is asked for, it may be pruned, the search is told of its end."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.sweep.directory import SweepDir
from launch.sweep.halving import is_pruned, should_stop
from launch.sweep.study import ask, tell
from resnet.rundir.attempts import end_file
from resnet.rundir.files import to_json, write_atomic
from resnet.rundir.status import read_status, write_status


def ask_trial(directory: SweepDir, trial: Mapping[str, Any]) -> dict[str, Any]:
    """A trial of a search with the point it is to try, which it keeps."""
    ask(directory.path, directory.number_of(trial))
    return {**trial, **json.loads((directory.path / trial["name"] / "slurm" / "point.json").read_text())}


def prune(sweep_dir: Path, trial: str) -> bool:
    """Whether early stopping ends a trial now (and not before)."""
    run_dir = sweep_dir / trial
    file, status = end_file(run_dir, "pruned"), read_status(run_dir)
    # One that has trained to its end has nothing left to save.
    if file.exists() or (status.get("step") or 0) >= (status.get("total_steps") or 1):
        return False
    stop = should_stop(sweep_dir, trial)
    if stop is not None:
        write_atomic(file, to_json({"rung": stop[0], "value": stop[1], "time": time.time()}))
    return stop is not None


def finish_trial(directory: SweepDir, trial: Mapping[str, Any]) -> None:
    """Tell the search, and early stopping, of a trial that has ended."""
    run_dir = directory.path / trial["name"]
    state = read_status(run_dir).get("state")
    if directory.content["early_stop"] and state == "finished":
        should_stop(directory.path, trial["name"])
    end = "pruned" if is_pruned(run_dir, state) else state
    if directory.is_search and (end == "pruned" or end == "finished" or end == "failed"):
        tell(directory.path, directory.number_of(trial), end)


def note_mistake(directory: SweepDir, trial: Mapping[str, Any], error: Exception) -> None:
    """A trial whose point makes no recipe has failed; the others go on."""
    run_dir = directory.path / trial["name"]
    (run_dir / "slurm").mkdir(parents=True, exist_ok=True)
    write_status(run_dir, name=run_dir.name, state="failed", reason=str(error), failure="mistake", eta_s=None)
    finish_trial(directory, trial)
