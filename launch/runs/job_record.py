"""slurm/job.json: what is known of a run's job."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from resnet.rundir.files import read_json, to_json
from resnet.rundir.status import status_or_nothing
from slurm.claim import Claim, newest_claim
from slurm.control import controller
from slurm.held import is_supervised, own_steps
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
    client: dict[str, str] = field(default_factory=dict)
    """Variables by which Slurm's commands reach the cluster, where these are not those of the shell."""
    identity: str = ""
    """Of one of several jobs that wait for the one run: what Slurm told of its cluster, as `slurm.requests` has it."""
    request: str = ""
    """Of one of several jobs that wait for the one run: its folder below that of this file."""
    requests: list[str] = field(default_factory=list)
    """Of the first of them: all."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Of the first of them: cluster and profile of each cluster, as they were before requests were made of them."""
    held: bool = False
    """Whether the job is a user's own, whose nodes the run was given, and not sent for the run."""
    steps: str = ""
    """What the names of its steps begin with, in a job that is a user's own."""

    @property
    def place(self) -> str:
        return place_in_words(self.cluster, self.profile)

    @property
    def retry_words(self) -> tuple[str, ...]:
        """What `launch retry` is told for it beside the name, from a machine outside of an allocation."""
        return ("--in", "JOBID") if self.held else ()

    @property
    def known_profile(self) -> dict[str, Any]:
        """The profile that it was sent with, without keys that only a newer version knows."""
        return known_keys(self.profile)

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
            client=dict(profile.client),
        )


def place_in_words(cluster: str, profile: Mapping[str, Any]) -> str:
    """As `one low 1-2 nodes`: where a job waits, and for how much."""
    nodes = f"{profile.get('nodes')} node{'' if profile.get('nodes') in (1, '1') else 's'}"
    return " ".join(filter(None, (cluster, profile.get("partition"), profile.get("qos"), nodes)))


def known_keys(profile: Mapping[str, Any]) -> dict[str, Any]:
    """A profile that was noted, without keys that only a newer version knows."""
    from slurm.profile import Profile

    return {key: value for key, value in profile.items() if key in Profile.model_fields}


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
    """The newest job of a run; None for a run that was never sent to Slurm. Raises ValueError where it is damaged.

    Of several that wait it is the one that has the run, or had it last; before one has started, the first.
    """
    first = _read(job_file(run_dir))
    if first is None or not first.requests:
        return first
    claim = claim_of(run_dir)
    content = claim.content if claim else {}
    # Of one that has let go of it the claim has no id: in its own record is that by which it waits again.
    chosen = content.get("request") or content.get("free")
    name = chosen if chosen in first.requests else first.request
    record = _read(_file_of_request(run_dir, name)) or first
    job_id = content.get("job_id") if content.get("request") == name else record.job_id
    return replace(record, job_id=job_id or first.job_id, requests=first.requests, asked=first.asked)


def claim_of(run_dir: Path) -> Claim | None:
    """Who has the run, of several jobs that wait for it; None where nobody has made a claim."""
    try:
        return newest_claim(run_dir)
    except (OSError, ValueError) as error:
        raise ValueError(f"{run_dir}/slurm/claims cannot be read ({error})") from error


def requests_of(run_dir: Path) -> list[Job]:
    """The jobs that wait, or did, for the one run, that were sent; empty where it was sent as one job.

    Where one of them has the run these are all to be cancelled, or end by themselves when they start.
    """
    first = _read(job_file(run_dir))
    found = (_read(_file_of_request(run_dir, name)) for name in (first.requests if first else ()))
    return [job for job in found if job and job.job_id]


def _file_of_request(run_dir: Path, name: str) -> Path:
    return run_dir / "slurm" / name / "job.json"


def _read(file: Path) -> Job | None:
    content = read_json(file)
    try:
        return job_of(content) if content else None
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error})") from error


class Active(NamedTuple):
    """A job that has not ended."""

    job_id: str
    state: str
    """Slurm's."""
    job: Job


class Found(NamedTuple):
    """The jobs of a run."""

    active: list[Active]
    silent: list[Job]
    """Of which nobody knows, since their controller does not answer; beside others that are active."""


def active_jobs(run_dir: Path) -> list[Active]:
    """The jobs of a run that have not ended; where one has the run, only that one, since the others end by themselves.

    Raises ValueError where no controller says that one is active, and one does not answer.
    """
    return find_jobs(run_dir).active


def find_jobs(run_dir: Path) -> Found:
    """As `active_jobs`, with those that may be active too. Raises ValueError as it does."""
    first = read_job(run_dir)
    if first is None:
        return Found([], [])
    if first.held:
        return Found([Active(first.job_id, "RUNNING", first)] if is_under_way(run_dir, first) else [], [])
    claim = claim_of(run_dir) if first.requests else None
    if not first.requests or (claim and claim.over):
        return _active(run_dir, [first])
    # Where the holder is dead, one that has started waits to take the run over.
    by_holder = _active(run_dir, [first]) if claim and claim.holder else Found([], [])
    return by_holder if by_holder.active else _active(run_dir, requests_of(run_dir))


def _active(run_dir: Path, jobs: Iterable[Job]) -> Found:
    """Those that have not ended. Raises ValueError as `active_jobs` does."""
    found, silent, troubles, answers, sent = [], [], [], {}, job_file(run_dir).stat().st_mtime
    for job in jobs:
        try:
            if (key := controller(job.client)) not in answers:
                # An answer from before the job was sent, by another command, would not know it.
                answers[key] = queued(job.client, since=sent)
            known = answers[key]
        except ValueError as error:
            troubles.append(error)
            silent.append(job)
            continue
        one = (known or {}).get(job.job_id)
        # Ids begin anew where a cluster is set up again, and repeat over clusters.
        if one and not one.over and one.name == job.name:
            found.append(Active(job.job_id, one.state, job))
    if troubles and not found:
        raise troubles[0]
    return Found(found, silent)


def active_job(run_dir: Path) -> tuple[str, str] | None:
    """Id and Slurm's state of a run's job that has not ended. Raises ValueError where Slurm does not answer."""
    found = active_jobs(run_dir)
    return found[0][:2] if found else None


def is_under_way(run_dir: Path, job: Job) -> bool:
    """Whether a run is trained in an allocation that a user holds, which goes on without it."""
    status = status_or_nothing(run_dir)
    if status.get("state") not in ("running", "queued"):
        return False
    # Before the first step, and between two, there may be none for as long as it takes.
    if is_supervised(run_dir):
        return True
    try:
        return job.steps in {step.run for step in own_steps(job.job_id, job.client)}
    except ValueError as error:
        if "Invalid job id" in str(error):
            return False
        raise


def write_job(run_dir: Path, job: Job, job_id: str) -> None:
    """Note a trial's job; without waiting for the disk, which a thousand of them would."""
    job_file(run_dir).write_text(job_text(job, job_id), encoding="utf-8")
