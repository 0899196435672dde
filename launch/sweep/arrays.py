"""The record of a sweep's arrays of jobs: what was sent before its id is known, then the id."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.runs.job_record import job_of, write_job
from resnet.rundir.files import append_line, read_lines
from slurm.control import ask as ask_slurm
from slurm.queue import queued

CANCEL_SECONDS = 60.0


def _record(sweep_dir: Path) -> Path:
    return sweep_dir / "slurm" / "arrays.jsonl"


def note_array(sweep_dir: Path, **fields: Any) -> None:
    append_line(_record(sweep_dir), fields)


def arrays(sweep_dir: Path) -> dict[str, dict[str, Any]]:
    """By name: the trials of each array, and its job's id unless the command that sent it died over it."""
    found: dict[str, dict[str, Any]] = {}
    for fields in read_lines(_record(sweep_dir)):
        found.setdefault(fields["name"], {}).update(fields)
    return found


def settle_arrays(sweep_dir: Path) -> None:
    """See to arrays that were sent by a command that died before it could note their ids.

    Where submitit had not come to place what all tasks are to call, those would fail: the array is cancelled.
    """
    lost = {name: array for name, array in arrays(sweep_dir).items() if "job_ids" not in array}
    if not lost:
        return
    for name, array in lost.items():
        job_ids: list[str] = []
        client = array["job"]["profile"].get("client") or {}
        jobs = queued(client)
        if jobs is None:
            raise ValueError(f"{sweep_dir}: a command was killed while it sent trials; run this where squeue is")
        for base in {job_id.partition("_")[0] for job_id, job in jobs.items() if job.name == name}:
            number = len(array["trials"])
            found = [base] if number == 1 else [f"{base}_{index}" for index in range(number)]
            if all((sweep_dir / "slurm" / name / f"{job_id}_submitted.pkl").exists() for job_id in found):
                job_ids = found
            else:
                _cancel(base, client)
        for trial, job_id in zip(array["trials"], job_ids, strict=False):
            write_job(sweep_dir / trial, job_of(array["job"]), job_id)
        note_array(sweep_dir, name=name, job_ids=job_ids)


def _cancel(job_id: str, client: Mapping[str, str]) -> None:
    """Cancel a job and see it end: its runs are to be free for another."""
    with contextlib.suppress(ValueError):
        ask_slurm(["scancel", job_id], client=client)
    deadline = time.monotonic() + CANCEL_SECONDS
    while time.monotonic() < deadline:
        jobs = queued(client, since=time.time()) or {}
        if all(job.over for found, job in jobs.items() if found.partition("_")[0] == job_id):
            return
        time.sleep(0.5)
    raise ValueError(f"job {job_id}, of a command that was killed, does not end: scancel it and try again")
