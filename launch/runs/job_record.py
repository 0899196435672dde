"""slurm/job.json: what is known of a run's job."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet.rundir.files import read_json, to_json
from slurm.queue import queued

if TYPE_CHECKING:
    from slurm.profile import Profile

FORMAT = 1


@dataclass(frozen=True)
class Job:
    """The content of slurm/job.json."""

    job_id: str
    name: str
    """In the queue."""
    cluster: str
    profile: dict[str, Any]
    nodes: int
    """The most that it may be given, as its ranks are of so many."""
    ranks: int
    gpus_per_node: int
    snapshot: str
    folder: str
    command: str
    submitted: float

    @property
    def known_profile(self) -> dict[str, Any]:
        """The profile that it was sent with, without keys that only a newer version knows."""
        from slurm.profile import Profile

        return {key: value for key, value in self.profile.items() if key in Profile.model_fields}

    @classmethod
    def to_send(cls, name: str, cluster: str, profile: Profile, snapshot: Path, cwd: Path) -> Job:
        """The record of a job that is about to be sent by this command, and has no id yet."""
        return cls(
            job_id="",
            name=name,
            cluster=cluster,
            profile=profile.model_dump(mode="json"),
            nodes=profile.most_nodes,
            ranks=profile.ranks,
            gpus_per_node=profile.gpus_per_node,
            snapshot=str(snapshot),
            folder=str(cwd),
            command=shlex.join(["launch", *sys.argv[1:]]),
            submitted=time.time(),
        )


def job_file(run_dir: Path) -> Path:
    return run_dir / "slurm" / "job.json"


def job_text(job: Job, job_id: str) -> str:
    """The content of job.json once the job has its id."""
    return to_json({"format": FORMAT, **asdict(replace(job, job_id=job_id))}, indent=1)


def job_of(fields: Mapping[str, Any]) -> Job:
    """The record that these fields are of; what a newer version has put beside them is passed over.

    Raises ValueError where one is missing that no default stands for.
    """
    known = {field.name for field in dataclass_fields(Job)}
    try:
        return Job(**{key: value for key, value in fields.items() if key in known})
    except TypeError as error:
        raise ValueError(str(error)) from error


def read_job(run_dir: Path) -> Job | None:
    """The newest job of a run; None for a run that was never sent to Slurm. Raises ValueError where it is damaged."""
    content = read_json(job_file(run_dir))
    try:
        return job_of(content) if content else None
    except ValueError as error:
        raise ValueError(f"{job_file(run_dir)} is damaged ({error})") from error


def active_job(run_dir: Path) -> tuple[str, str] | None:
    """Id and Slurm's state of a run's job that has not ended. Raises ValueError where Slurm does not answer."""
    job = read_job(run_dir)
    if job is None:
        return None
    # An answer from before the job was sent, by another command, would not know it.
    found = (queued(since=job_file(run_dir).stat().st_mtime) or {}).get(job.job_id)
    # Ids begin anew where a cluster is set up again, and repeat over clusters.
    return (job.job_id, found.state) if found and not found.over and found.name == job.name else None


def write_job(run_dir: Path, job: Job, job_id: str) -> None:
    """Note a trial's job; without waiting for the disk, which a thousand of them would."""
    job_file(run_dir).write_text(job_text(job, job_id), encoding="utf-8")
