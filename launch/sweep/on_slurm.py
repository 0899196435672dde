"""A sweep's trials as arrays of Slurm jobs."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.runs.job_record import Job, write_job
from launch.runs.send import SNAPSHOTS, uninterrupted
from launch.sweep.arrays import arrays, note_array
from launch.sweep.directory import AUTO, Place, SweepDir
from resnet.rundir.files import to_json, write_atomic
from resnet.rundir.status import read_status, status_text, write_status
from slurm.code_copy import take_snapshot
from slurm.sbatch import Submission, max_array_size, submit
from slurm.share import trial_of, trials_at_once


def send_trials(
    directory: SweepDir, todo: Sequence[dict[str, Any]], place: Place, snapshot: Path | None = None
) -> None:
    """Send trials as arrays of at most as many jobs as the cluster takes in one, each after the one before.

    snapshot: the copy of the program they are to run; None: one of the program as it is now.
    """
    if not todo:
        return
    assert place.profile is not None
    snapshot = snapshot or take_snapshot(directory.path.parent / SNAPSHOTS)
    most, before = max_array_size(place.profile.client), None
    shares = place.parallel == AUTO
    at_once = place.parallel if isinstance(place.parallel, int) else None
    if shares:
        at_once = trials_at_once(trial_of(place.profile), place.profile.client)
    for start in range(0, len(todo), most):
        part = todo[start : start + most]
        limit = min(at_once or len(part), len(part))
        with uninterrupted():
            job_ids = _send_array(directory, part, place, snapshot, limit, before)
        before = job_ids[0].partition("_")[0]
        by = " for now, by what is idle" if shares else ""
        told = f", {limit} at once{by}" if limit < len(part) else ""
        print(f"{len(part)} trials are job {before} on {place.cluster}{told}")


def _send_array(
    directory: SweepDir, part: Sequence[dict[str, Any]], place: Place, snapshot: Path, limit: int, after: str | None
) -> list[str]:
    profile, sweep_dir = place.profile, directory.path
    assert profile is not None
    runs = [directory.prepare(trial) for trial in part]
    # Not to be taken for an array of another sweep of the same name.
    name = f"{sweep_dir.name}.{len(arrays(sweep_dir)) + 1}-{secrets.token_hex(3)}"
    job = Job.to_send(name, place.cluster, profile, snapshot, place.cwd)
    before = [read_status(run_dir) for run_dir in runs]
    for run_dir in runs:
        _note_queued(run_dir)
    note_array(sweep_dir, name=name, trials=[run.name for run in runs], job=asdict(job))
    watched = directory.is_search or directory.content["early_stop"]
    submission = Submission(
        profile,
        name,
        sweep_dir / "slurm" / name,
        snapshot,
        place.cwd,
        runs,
        [run / "slurm" / "recipe.yaml" for run in runs],
        parallel=limit,
        shares=place.parallel == AUTO,
        supervisor="launch.trial" if watched else "slurm.batch",
        sweep=sweep_dir,
        after=f"afterany:{after}" if after else None,
    )
    try:
        job_ids = submit(submission)
    except BaseException:
        note_array(sweep_dir, name=name, job_ids=[])
        for run_dir, status in zip(runs, before, strict=True):
            if status:
                write_atomic(run_dir / "status.json", to_json(status, indent=1) + "\n")
            else:
                (run_dir / "status.json").unlink()
        raise
    for run_dir, job_id in zip(runs, job_ids, strict=True):
        write_job(run_dir, job, job_id)
    note_array(sweep_dir, name=name, job_ids=job_ids)
    return job_ids


def _note_queued(run_dir: Path) -> None:
    """As `write_status` would, but for a thousand at once: without waiting for the disk at each."""
    if (run_dir / "status.json").exists():
        write_status(run_dir, state="queued", reason=None, failure=None, eta_s=None)
    else:
        text = status_text({"name": run_dir.name, "state": "queued"})
        (run_dir / "status.json").write_text(text, encoding="utf-8")
