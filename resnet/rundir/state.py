"""How a run is by its own word, and by whether its trainer still lives. What Slurm knows, the launcher adds to it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from recipes.text import format_duration, labels, show
from resnet.process.processes import is_alive, pid_namespace
from resnet.rundir.files import number
from resnet.rundir.lease import read_lease
from resnet.rundir.status import read_status

STATES = ("running", "queued", "damaged", "unknown", "failed", "stopped", "finished")
"""In the order of a table; damaged and unknown are of runs whose status.json cannot be read, or is not there yet."""
SILENT_SECONDS = 600
"""A trainer renews its lease every ten seconds."""
_FIGURES = (
    *("step", "total_steps", "percent", "epoch", "epochs"),
    *("loss", "top1", "best", "test_top1", "images_per_second"),
)
_TIMES = ("eta_s", "last_checkpoint_time", "updated")


class Verdict(NamedTuple):
    """What is true of a run."""

    state: str
    failure: str | None
    reason: str | None
    over: bool
    """Whether nothing more happens until somebody starts it again."""


def own_rows(run_dirs: Iterable[Path]) -> list[dict[str, Any]]:
    """How runs are by their own word, in their order, as plain values. One that cannot be read is `damaged`."""
    found = []
    for folder in run_dirs:
        row = _own_row(folder)
        # It may have ended well between the two looks.
        found.append(_own_row(folder) if row["failure"] == "killed" else row)
    return found


def true_status(folder: Path) -> dict[str, Any]:
    """The fields of status.json, where a run whose trainer is gone is not running but failed.

    Raises ValueError where the file is damaged.
    """
    status = _true_status(folder)
    # As in `own_rows`.
    return _true_status(folder) if status.get("failure") == "killed" else status


def _true_status(folder: Path) -> dict[str, Any]:
    status, now = read_status(folder), time.time()
    if status.get("state") != "running":
        return status
    verdict = _verdict(folder, status, now)
    return status | {"state": verdict.state, "failure": verdict.failure, "reason": verdict.reason}


def has_ended(folder: Path) -> bool:
    """Whether a run is over by its own word, or has given no sign of life for so long that it may be."""
    row = _own_row(folder)
    return row["over"] or signs_of_life(folder, row, True, time.time())[1] > SILENT_SECONDS


def _own_row(folder: Path) -> dict[str, Any]:
    now, status = time.time(), {}
    try:
        status = read_status(folder)
        verdict = _verdict(folder, status, now)
    except (ValueError, OSError) as error:
        verdict = Verdict("damaged", None, str(error), True)
    return row_of(folder, status, verdict, now)


def _verdict(folder: Path, status: Mapping[str, Any], now: float) -> Verdict:
    sent = os.path.exists(folder / "slurm" / "job.json")
    return own_verdict(status, *signs_of_life(folder, status, sent, now))


def row_of(folder: Path, status: Mapping[str, Any], verdict: Verdict, now: float) -> dict[str, Any]:
    """A run as plain values. status: what status.json says. now: unix time."""
    figures = {key: number(status.get(key)) for key in (*_FIGURES, *_TIMES, "attempts") if key in status}
    saved = max(figures.get("last_checkpoint_time") or 0, _mtime(f"{folder}/checkpoints/latest"))
    return {
        "name": name_of(folder),
        "recipe": _recipe(status),
        "differs": status.get("differs") if isinstance(status.get("differs"), dict) else None,
        "state": verdict.state,
        **{key: figures.get(key) for key in _FIGURES},
        "eta_s": figures.get("eta_s") if verdict.state == "running" else None,
        "attempts": figures.get("attempts"),
        "last_checkpoint_age_s": max(0.0, now - saved) if saved else None,
        "failure": verdict.failure,
        "reason": verdict.reason,
        "over": verdict.over,
        "wandb_url": status.get("wandb_url"),
        "host": status.get("host"),
        "updated": figures.get("updated"),
        "run_dir": str(folder),
    }


def name_of(folder: Path) -> str:
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def _recipe(status: Mapping[str, Any]) -> str | None:
    """The recipe's name and what differs from it, which tells runs apart."""
    name, differs = status.get("recipe"), status.get("differs")
    if not isinstance(name, str):
        return None
    differs = differs if isinstance(differs, dict) else {}
    short = _labels(tuple(differs))
    return " ".join([name, *(f"{short[key]}={show(value)}" for key, value in differs.items())])


@lru_cache
def _labels(keys: tuple[str, ...]) -> dict[str, str]:
    # As `every` alone says nothing.
    return labels(keys, with_group=("checkpoint", "distill", "early_stopping", "ema", "eval"))


def signs_of_life(folder: Path, status: Mapping[str, Any], sent: bool, now: float) -> tuple[bool | None, float]:
    """Whether the trainer's process lives (None: it cannot be seen from here), and seconds without a sign of life.

    sent: whether the run was sent to Slurm.
    """
    if status.get("state") != "running":
        return None, 0.0
    alive = None
    here = status.get("host") == socket.gethostname() and status.get("pid_namespace") in (None, pid_namespace())
    if not sent and here and isinstance(status.get("pid"), int):
        alive = is_alive(status["pid"])
    renewed = number(read_lease(folder).get("time"))
    return alive, now - max(renewed or 0, number(status.get("updated")) or 0)


def own_verdict(status: Mapping[str, Any], alive: bool | None = None, silent: float = 0.0) -> Verdict:
    """The state of a run as far as it can be told without Slurm.

    status: what status.json says. alive: whether the trainer's process lives, None if that cannot be seen from here.
    silent: seconds since it gave a sign of life.
    """
    state, failure, reason = (status.get(key) for key in ("state", "failure", "reason"))
    if state not in ("running", "queued", "failed", "stopped", "finished"):
        return Verdict("unknown", None, "no status.json yet", False)
    if state == "finished":
        return Verdict(state, None, status.get("stopped_early"), True)
    if state == "running" and alive is False:
        return Verdict("failed", "killed", f"process {status['pid']} is gone; the same command continues the run", True)
    if state == "running" and silent > SILENT_SECONDS:
        reason = f"no sign of life for {format_duration(silent)} from {status.get('host')}"
    return Verdict(state, failure, reason, state in ("failed", "stopped"))


def _mtime(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
