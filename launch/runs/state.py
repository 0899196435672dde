"""What is true of runs: their own word put together with Slurm's. Plain rows for `launch status` and for sweeps."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from launch.runs.job_record import job_file
from recipes.text import format_duration, labels, suggestion
from resnet.process.processes import is_alive
from resnet.rundir.files import read_json
from resnet.rundir.find import find_run, roots
from resnet.rundir.lease import read_lease
from resnet.rundir.status import read_status
from slurm.queue import STARTED, WAITING, Job, accounted, queued

ROOT = "runs"
SWEEP_FILE = "sweep.json"
"""In a folder of runs that are the trials of a sweep."""
STATES = ("running", "queued", "damaged", "unknown", "failed", "stopped", "finished")
"""In the order of a table; damaged and unknown are of runs whose status.json cannot be read, or is not there yet."""
GRACE_SECONDS = 60
"""A run is `queued` before its job is sent, and `stopped` before that is requeued: neither is the end yet."""
SILENT_SECONDS = 600
"""A trainer renews its lease every ten seconds."""
CLOCKS_DIFFER_SECONDS = 5
_FIGURES = ("step", "total_steps", "percent", "epoch", "epochs", "loss", "top1", "best", "images_per_second")
_UNSURE = (None, "peer", "nccl", "killed")
"""Failures, by a run's own word, of which Slurm may know the cause."""


class Verdict(NamedTuple):
    """What is true of a run."""

    state: str
    failure: str | None
    reason: str | None
    over: bool
    """Whether nothing more happens until somebody starts it again."""


class Run(NamedTuple):
    """What a run directory says."""

    folder: Path
    status: dict[str, Any]
    sent: dict[str, Any]
    """Content of slurm/job.json; empty for a run that was not sent to Slurm."""
    job_id: str | None
    problem: str | None
    """Why status.json cannot be read."""


def find(text: str, root: str | Path) -> Path:
    """The directory of a run by name or path. Raises ValueError with names that are near."""
    for path in _places(text, root):
        if (path / "status.json").is_file():
            return path
    return find_run(text, root)


def _places(text: str, root: str | Path) -> list[Path]:
    return [Path(text).expanduser(), *(folder / text for folder in roots(root))]


def find_sweep(text: str, root: str | Path) -> Path | None:
    """The absolute directory of a sweep by name or path; None where that is no sweep."""
    return next((path.absolute() for path in _places(text, root) if is_sweep(path)), None)


def is_sweep(folder: Path) -> bool:
    return (folder / SWEEP_FILE).is_file()


def folders(root: str | Path, clusters: Sequence[str] = ()) -> list[Path]:
    """The run directories in a folder, or, where none is named, in ./runs and wherever runs were sent to from here.

    clusters: of which the profile may name another folder. Raises ValueError where one that was named is not there.
    """
    if root != ROOT:
        return _runs_in(Path(root), f"--root {root}")
    places = [*roots(root), *(place for cluster in clusters if (place := _root_of(cluster)))]
    return [run for place in dict.fromkeys(path.absolute() for path in places) for run in _shown(place)]


def _root_of(cluster: str) -> Path | None:
    from slurm.profile import load_profile

    root = load_profile(cluster).run_root
    return Path(root).expanduser() if root else None


def _shown(place: Path) -> list[Path]:
    """The runs in a folder that need not be there, named from here on where that is shorter."""
    near = place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place
    return _runs_in(near, str(near)) if place.is_dir() else []


def _runs_in(folder: Path, shown: str) -> list[Path]:
    try:
        with os.scandir(folder.expanduser()) as entries:
            paths = [entry.path for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ValueError(f"{shown}: {error.strerror}") from error
    files = ("status.json", "recipe.yaml")
    return [Path(path) for path in paths if any(os.path.isfile(f"{path}/{name}") for name in files)]


def rows(run_dirs: Iterable[Path]) -> list[dict[str, Any]]:
    """What is true of runs, in their order, as plain values; asks Slurm once for all of them, or not at all."""
    runs = [_read(folder) for folder in run_dirs]
    jobs, trouble = _ask_slurm(runs)
    found = []
    for run in runs:
        row = _row(run, jobs, trouble)
        if row["state"] == "failed" and run.status.get("state") in ("running", "queued"):
            # It may have ended well between the two looks.
            row = _row(_read(run.folder), jobs, trouble)
        found.append(row)
    return found


def ordered(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that need a look first, and of each state the newest."""
    return sorted(found, key=lambda row: (STATES.index(row["state"]), -(row["updated"] or 0), row["name"]))


def by_key(found: Iterable[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Rows by a key: numbers with the largest first, texts from A to Z, those without it last. Raises ValueError."""
    found = list(found)
    if found and key not in found[0]:
        raise ValueError(f"--sort {key}: {suggestion(key, sorted(found[0]))}")

    def place(row: dict[str, Any]) -> tuple[bool, float, str]:
        number = _number(row[key])
        return row[key] is None, -number if number is not None else 0.0, str(row[key])

    return sorted(found, key=place)


def matches(row: Mapping[str, Any], wanted: str) -> bool:
    """Whether a run is what `--filter` asks for: KEY=VALUE of its row or recipe, or a text in its name or recipe."""
    key, equals, value = wanted.partition("=")
    if not equals:
        return wanted.lower() in f"{row['name']} {row['recipe']}".lower()
    found = (row["differs"] or {}).get(key, row.get(key))
    number = _number(found)
    try:
        return number == float(value) if number is not None else str(found).lower() == value.lower()
    except ValueError:
        return False


def _recipe(status: Mapping[str, Any]) -> str | None:
    """The recipe's name and what differs from it, which tells runs apart."""
    name, differs = status.get("recipe"), status.get("differs")
    if not isinstance(name, str):
        return None
    differs = differs if isinstance(differs, dict) else {}
    short = labels(differs)
    return " ".join(
        [
            name,
            *(
                f"{short[key]}={value if isinstance(value, str) else json.dumps(value)}"
                for key, value in differs.items()
            ),
        ]
    )


def _read(folder: Path) -> Run:
    status, sent, problem = {}, {}, None
    try:
        status = read_status(folder)
    except (ValueError, OSError) as error:
        problem = str(error)
    if not status and not folder.is_dir():
        problem = "the folder is gone"
    with contextlib.suppress(OSError, ValueError):
        sent = read_json(job_file(folder))
    # Else a job of the user's own, in which the trainer was started by hand.
    job_id = sent.get("job_id") or (status.get("job_id") if status.get("state") == "running" else None)
    return Run(folder, status, sent, str(job_id) if job_id else None, problem)


def _ask_slurm(runs: Sequence[Run]) -> tuple[dict[str, Job], str | None]:
    """Jobs by id, and why Slurm's word is missing."""
    open_runs = [run for run in runs if run.job_id and run.status.get("state") not in (None, "finished")]
    if not open_runs:
        return {}, None
    try:
        known = queued()
    except ValueError as error:
        return {}, str(error)
    if known is None:
        return {}, "no squeue on this machine to ask"
    forgotten = [
        run.job_id
        for run in open_runs
        if run.job_id
        and _job_of(run, known) is None
        and (run.status["state"] != "failed" or run.status.get("failure") in _UNSURE)
    ]
    return known | (accounted(forgotten) if forgotten else {}), None


def _job_of(run: Run, jobs: Mapping[str, Job]) -> Job | None:
    """The run's job. Ids begin anew where a cluster is set up again: then the name is another's."""
    job = jobs.get(run.job_id or "")
    if job is None or not job.name or not run.sent:
        return job
    ours, theirs = (
        re.sub(r"[^0-9A-Za-z]+", "_", name) for name in (run.sent.get("name") or _name(run.folder), job.name)
    )
    return job if ours == theirs else None


def _name(folder: Path) -> str:
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def _row(run: Run, jobs: Mapping[str, Job], trouble: str | None) -> dict[str, Any]:
    now, status, job = time.time(), run.status, _job_of(run, jobs)
    number = {key: _number(status.get(key)) for key in status}
    alive, silent = _signs_of_life(run, now)
    cancelled = os.path.exists(run.folder / "slurm" / "cancel")
    verdict = effective(status, job, run.job_id, trouble, alive, silent, cancelled, now)
    if run.problem:
        verdict = Verdict("damaged", None, run.problem, True)
    saved = max(number.get("last_checkpoint_time") or 0, _mtime(f"{run.folder}/checkpoints/latest"))
    return {
        "name": _name(run.folder),
        "recipe": _recipe(status),
        "differs": status.get("differs") if isinstance(status.get("differs"), dict) else None,
        "cluster": run.sent.get("cluster"),
        "state": verdict.state,
        "slurm_state": job.state if job else None,
        **{key: number.get(key) for key in _FIGURES},
        "eta_s": number.get("eta_s") if verdict.state == "running" else None,
        "attempts": number.get("attempts"),
        "last_checkpoint_age_s": max(0.0, now - saved) if saved else None,
        "failure": verdict.failure,
        "reason": verdict.reason,
        "over": verdict.over,
        "job_id": run.job_id or status.get("job_id"),
        "nodes": job.nodes or None if job else None,
        "time_left_s": job.time_left_s if job and job.state in STARTED else None,
        "wandb_url": status.get("wandb_url"),
        "host": status.get("host"),
        "updated": number.get("updated"),
        "run_dir": str(run.folder),
    }


def _signs_of_life(run: Run, now: float) -> tuple[bool | None, float]:
    """Whether the trainer's process lives (None: it cannot be seen from here), and seconds without a sign of life."""
    status = run.status
    if status.get("state") != "running":
        return None, 0.0
    alive = None
    if not run.sent and status.get("host") == socket.gethostname() and isinstance(status.get("pid"), int):
        alive = is_alive(status["pid"])
    renewed = _number(read_lease(run.folder).get("time"))
    return alive, now - max(renewed or 0, _number(status.get("updated")) or 0)


def effective(
    status: Mapping[str, Any],
    job: Job | None = None,
    job_id: str | None = None,
    trouble: str | None = None,
    alive: bool | None = None,
    silent: float = 0.0,
    cancelled: bool = False,
    now: float = 0.0,
) -> Verdict:
    """The true state of a run.

    status: what status.json says. job: Slurm's word on job `job_id`, None where it knows nothing or, with `trouble`,
    could not be asked. alive: whether the trainer's process lives, None if that cannot be seen from here. silent:
    seconds since it gave a sign of life. cancelled: the user has asked for the end. now: unix time.
    """
    state, failure, reason = (status.get(key) for key in ("state", "failure", "reason"))
    updated = _number(status.get("updated")) or 0
    if state not in ("running", "queued", "failed", "stopped", "finished"):
        return Verdict("unknown", None, "no status.json yet", False)
    if state == "finished":
        return Verdict(state, None, None, True)
    if state == "running" and alive is False:
        return Verdict("failed", "killed", f"process {status['pid']} is gone; the same command continues the run", True)
    if state == "running" and silent > SILENT_SECONDS:
        reason = f"no sign of life for {format_duration(silent)} from {status.get('host')}"
    ended = state in ("failed", "stopped")
    as_told = Verdict(state, failure, reason, ended)
    if job_id is None or (state == "queued" and now - updated < GRACE_SECONDS and (job is None or job.over)):
        return as_told
    if job is None and trouble:
        over = ended and (state == "failed" or now - updated > GRACE_SECONDS)
        return as_told._replace(reason=reason or trouble, over=over)
    if job is None or job.over:
        return _without_job(as_told, job, job_id, cancelled)
    note = "being cancelled" if cancelled else None
    if job.state in WAITING:
        again = (f"requeued ({reason})" if reason else "requeued") if ended or state == "running" or reason else None
        expected = f"expected in {format_duration(job.start - now)}" if job.start and job.start > now else None
        return Verdict("queued", None, ", ".join(filter(None, (note, again, job.reason, expected))) or None, False)
    if job.start and updated < job.start - CLOCKS_DIFFER_SECONDS:
        # Of the attempt before: this one has not come to write its own.
        return Verdict("running", None, note or "starting", False)
    return as_told._replace(reason=note or reason, over=False)


def _without_job(told: Verdict, job: Job | None, job_id: str, cancelled: bool) -> Verdict:
    """Of a run whose job has ended, and is not in the queue again."""
    how = f"Slurm ended job {job_id}: {job.state}" if job else f"job {job_id} is gone, and Slurm knows nothing of it"
    kind = job.failure if job else None
    if cancelled and kind is None:
        kind = "user"
    if told.state in ("running", "queued"):
        if job and kind is None:
            how = f"job {job_id} ended ({job.state}), and its run did not say how"
        return Verdict("failed", kind or ("crash" if job else "gone"), how, True)
    if told.state == "stopped":
        known = kind if kind != "crash" else None
        return told._replace(failure=told.failure or known)
    if told.failure in _UNSURE and kind in ("oom", "timeout", "node", "preempted"):
        return told._replace(failure=kind, reason="; ".join(filter(None, (how, told.reason))))
    return told


def _mtime(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _number(value: Any) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None
