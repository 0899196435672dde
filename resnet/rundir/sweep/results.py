"""What a sweep has found, read from its directory: its trials, its settings ranked, and what it has cost."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from recipes.metric import cost
from recipes.text import plural
from resnet.rundir.attempts import read_attempts
from resnet.rundir.files import number
from resnet.rundir.index import LEAST_RUNS, Index, identity
from resnet.rundir.metrics_log import Point, read_points
from resnet.rundir.provenance import read_provenance
from resnet.rundir.state import has_ended as run_has_ended
from resnet.rundir.sweep.ranking import compare, eta, importance, ranked
from resnet.rundir.sweep.result_types import Comparison, Setting, Share, Trial, goes_on, repeated
from resnet.rundir.sweep.sweep_file import read_sweep

STATES = ("finished", "running", "queued", "not sent", "pruned", "stopped", "failed", "damaged", "unknown")

INDEX = ".results-index"
"""File in a sweep's directory that keeps what its trials that are over have measured."""


@dataclass(frozen=True)
class Board:
    """A sweep's results."""

    folder: str
    name: str
    method: str
    metric: str
    goal: str
    keys: tuple[str, ...]
    """What is swept."""
    trials: tuple[Trial, ...]
    """In the order of submission."""
    settings: tuple[Setting, ...]
    """Ranked: first those with a finished trial, then those with a value so far."""
    counts: dict[str, int]
    importance: tuple[Share, ...]
    """The largest first, seed or fold last."""
    comparison: Comparison | None
    gpu_hours: float
    elapsed_s: float
    eta_s: float | None
    """None where it cannot be told."""
    wandb_url: str | None = None
    """Page of the W&B sweep, where it was made one."""

    @property
    def best(self) -> Setting | None:
        """The setting that leads; None before a trial has finished."""
        return self.settings[0] if self.settings and self.settings[0].done else None


def sweep_so_far(sweep_dir: Path) -> dict[str, Any]:
    """The content of sweep.json and its `folder`; points that a search has chosen since are filled in.

    Raises ValueError where it is not there, or damaged.
    """
    sweep = read_sweep(sweep_dir)
    return sweep | {"folder": str(sweep_dir), "trials": [_asked(sweep_dir, trial) for trial in sweep["trials"]]}


def _asked(sweep_dir: Path, trial: dict[str, Any]) -> dict[str, Any]:
    if trial.get("point") is None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return trial | json.loads((sweep_dir / trial["name"] / "slurm" / "point.json").read_bytes())
    return trial


def folders(sweep: Mapping[str, Any]) -> list[Path]:
    """The run directories of the trials that have one, for `resnet.rundir.state.own_rows`."""
    with os.scandir(sweep["folder"]) as entries:
        there = {entry.name for entry in entries if entry.is_dir()}
    return [Path(sweep["folder"]) / trial["name"] for trial in sweep["trials"] if trial["name"] in there]


def has_ended(sweep_dir: Path) -> bool:
    """Whether each of a sweep's trials has begun and come to its end. Raises ValueError as `sweep_so_far` does."""
    # From the last: while others are to come, one look tells.
    return all(run_has_ended(sweep_dir / trial["name"]) for trial in reversed(read_sweep(sweep_dir)["trials"]))


def results(sweep: Mapping[str, Any], run_rows: Iterable[Mapping[str, Any]], now: float | None = None) -> Board:
    """A sweep's results so far.

    sweep: of `sweep_so_far`. run_rows: `own_rows(folders(sweep))`. now: unix time.
    """
    now = time.time() if now is None else now
    by_name = {os.path.basename(row["run_dir"]): row for row in run_rows}
    index = None
    if len(by_name) >= LEAST_RUNS:
        index = Index(Path(sweep["folder"], INDEX), f"1 {sweep['metric']} {sweep['goal']}")
    trials = [_trial(sweep, listed, by_name.get(listed["name"]), now, index) for listed in sweep["trials"]]
    if index:
        index.save()
    settings = ranked(trials, sweep)
    counted = Counter(trial.state for trial in trials)
    end = now if goes_on(trials) else max((trial.updated or 0 for trial in trials), default=0)
    return Board(
        folder=sweep["folder"],
        name=sweep["name"],
        method=sweep["method"],
        metric=sweep["metric"],
        goal=sweep["goal"],
        keys=tuple(sweep["parameters"]),
        trials=tuple(trials),
        settings=tuple(settings),
        counts={state: counted[state] for state in STATES if counted[state]},
        importance=tuple(importance(trials, tuple(sweep["parameters"]))),
        comparison=compare(settings, sweep["metric"], repeated(sweep["parameters"]) or "seed"),
        gpu_hours=sum(trial.gpu_hours for trial in trials),
        elapsed_s=max(0.0, end - (sweep.get("created") or end)),
        eta_s=eta(trials),
        wandb_url=(sweep.get("wandb_sweep") or {}).get("url"),
    )


def _trial(
    sweep: Mapping[str, Any],
    listed: Mapping[str, Any],
    row: Mapping[str, Any] | None,
    now: float,
    index: Index | None,
) -> Trial:
    name, point = listed["name"], listed.get("point") or {}
    if row is None:
        return Trial(name, point, "not sent")
    run_dir = row["run_dir"]
    (best, last, problem), seconds = _measured(sweep, row, now, index if row["over"] else None)
    pruned = row["state"] == "stopped" and os.path.exists(f"{run_dir}/slurm/pruned")
    devices = 0 if sweep.get("gpus_per_trial") == 0 else sweep.get("ranks") or 1
    return Trial(
        name,
        point,
        state="pruned" if pruned else row["state"],
        value=best.value if best else None,
        last=last.value if last else None,
        best_epoch=best.epoch if best else None,
        epoch=row["epoch"] if row["epoch"] is not None or last is None else last.epoch,
        epochs=row["epochs"],
        seconds=seconds,
        gpu_hours=seconds * devices / 3600,
        eta_s=row["eta_s"],
        failure=row["failure"],
        reason=row["reason"],
        problem=problem,
        updated=row["updated"],
        run_dir=run_dir,
    )


class Evaluations(NamedTuple):
    """What metrics.jsonl says of a trial."""

    best: Point | None = None
    last: Point | None = None
    problem: str | None = None


def _measured(
    sweep: Mapping[str, Any], row: Mapping[str, Any], now: float, index: Index | None
) -> tuple[Evaluations, float]:
    """Evaluations and seconds of a trial. index: of trials that are over, by which unchanged files are not read."""
    run_dir, name = row["run_dir"], os.path.basename(row["run_dir"])
    files = [identity(f"{run_dir}/status.json"), identity(f"{run_dir}/metrics.jsonl")] if index else []
    known = index.get(name, files) if index else None
    with contextlib.suppress(KeyError, TypeError):
        if known:
            best, last = (known[key] and Point(*known[key]) for key in ("best", "last"))
            return Evaluations(best, last, known["problem"]), float(known["seconds"])
    found = _evaluations(run_dir, sweep["metric"], sweep["goal"])
    seconds = _seconds(Path(run_dir), row, now)
    if index:
        index.put(name, files, {**found._asdict(), "seconds": seconds})
    return found, seconds


def _evaluations(run_dir: str, metric: str, goal: str) -> Evaluations:
    file = f"{run_dir}/metrics.jsonl"
    try:
        seen = os.stat(file)
        return _read_evaluations(file, metric, goal, seen.st_size, seen.st_mtime_ns)
    except FileNotFoundError:
        return Evaluations()
    except OSError as error:
        return Evaluations(problem=f"metrics.jsonl: {error.strerror}")


@lru_cache(maxsize=20_000)
def _read_evaluations(path: str, metric: str, goal: str, *_: int) -> Evaluations:
    """Reads a file again only when it has changed (*_)."""
    found, damaged = read_points(path, f"val/{metric}")
    # Stable: of equal values the first.
    best = min(found, key=lambda one: cost(one.value, goal), default=None)
    problem = f"metrics.jsonl: {plural(damaged, 'damaged line')} left out" if damaged else None
    return Evaluations(best, found[-1] if found else None, problem)


def _seconds(run_dir: Path, row: Mapping[str, Any], now: float) -> float:
    """That a trial's attempts took."""
    wrong = (OSError, ValueError, KeyError, TypeError, AttributeError)
    attempts = []
    with contextlib.suppress(*wrong):
        attempts = read_attempts(run_dir)
    # The trainer notes, when it starts again, when it was last seen alive.
    if not attempts or any("end" not in attempt for attempt in attempts[:-1]):
        with contextlib.suppress(*wrong):
            attempts = read_provenance(run_dir).get("attempts") or attempts
    total = 0.0
    for index, attempt in enumerate(attempts, 1):
        start, end = number(attempt.get("start")), number(attempt.get("end"))
        if attempt.get("end") is None and index == len(attempts):
            end = now if row["state"] == "running" else row["updated"]
        if start is not None and end is not None:
            total += max(0.0, end - start)
    return total
