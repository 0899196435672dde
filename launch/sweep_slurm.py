"""A sweep's trials as arrays of Slurm jobs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.jobs import SNAPSHOTS, Job, uninterrupted
from launch.sweep_dir import Place, SweepDir, write_job
from recipes.rundir import read_status, to_json, write_status
from slurm.sbatch import Submission, max_array_size, submit
from slurm.snapshot import take_snapshot


def send_trials(directory: SweepDir, todo: Sequence[dict[str, Any]], place: Place) -> None:
    """Send trials as arrays of at most as many jobs as the cluster takes in one."""
    if not todo:
        return
    assert place.profile is not None
    snapshot = take_snapshot(directory.path.parent / SNAPSHOTS)
    most = max_array_size()
    for start in range(0, len(todo), most):
        part = todo[start : start + most]
        limit = max(1, place.max_parallel * len(part) // len(todo)) if place.max_parallel else len(part)
        with uninterrupted():
            job_ids = _send_array(directory, part, place, snapshot, limit)
        at_once = f", {limit} at once" if limit < len(part) else ""
        first = job_ids[0].partition("_")[0]
        print(f"{len(part)} trials are job {first} on {place.cluster}{at_once}")


def _send_array(
    directory: SweepDir, part: Sequence[dict[str, Any]], place: Place, snapshot: Path, limit: int
) -> list[str]:
    profile, sweep_dir = place.profile, directory.path
    assert profile is not None
    runs = [directory.prepare(trial) for trial in part]
    name = f"{sweep_dir.name}.{len(directory.arrays()) + 1}"
    job = Job(
        job_id="",
        name=name,
        cluster=place.cluster,
        profile=profile.model_dump(mode="json"),
        nodes=profile.nodes,
        ranks=profile.ranks,
        gpus_per_node=profile.gpus_per_node,
        snapshot=str(snapshot),
        folder=str(place.cwd),
        command=directory.content["command"],
        submitted=time.time(),
    )
    for run_dir in runs:
        _note_queued(run_dir)
    directory.note_array(name=name, trials=[run.name for run in runs], job=job.__dict__)
    watched = directory.is_search or directory.content["early_stop"]
    submission = Submission(
        profile,
        name,
        sweep_dir / "slurm",
        snapshot,
        place.cwd,
        runs,
        [run / "slurm" / "recipe.yaml" for run in runs],
        limit,
        "launch.trial" if watched else "slurm.batch",
        sweep_dir,
    )
    try:
        job_ids = submit(submission)
    except BaseException:
        directory.note_array(name=name, job_ids=[])
        for run_dir in runs:
            _note_unsent(run_dir)
        raise
    for run_dir, job_id in zip(runs, job_ids, strict=True):
        write_job(run_dir, Job(**{**job.__dict__, "job_id": job_id}))
    directory.note_array(name=name, job_ids=job_ids)
    return job_ids


def _note_queued(run_dir: Path) -> None:
    """As `write_status` would, but for a thousand at once: without waiting for the disk at each."""
    if (run_dir / "status.json").exists():
        write_status(run_dir, state="queued", reason=None, failure=None, eta_s=None)
    else:
        fields = {"name": run_dir.name, "state": "queued", "updated": time.time()}
        (run_dir / "status.json").write_text(to_json(fields, indent=1) + "\n", encoding="utf-8")


def _note_unsent(run_dir: Path) -> None:
    if read_status(run_dir).get("attempts"):
        write_status(run_dir, state="stopped", reason="not sent")
    else:
        (run_dir / "status.json").unlink()
