"""How a run is sent as several jobs, of which the first that starts trains it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch.runs.job_record import Job, job_file, job_text
from launch.runs.requests import Place, Request, submission_of
from recipes.schema.recipe import Recipe
from resnet.rundir.files import write_atomic
from slurm.claim import follow, newest_claim
from slurm.control import ask, controller
from slurm.profile import Profile
from slurm.race import TOKEN
from slurm.requests import all_sent, cancel_waiting, identity_of
from slurm.sbatch import SlurmError
from slurm.sbatch import submit as submit_jobs


def send_several(
    run_dir: Path,
    recipe: Recipe,
    requests: Sequence[Request],
    places: Sequence[Place],
    snapshot: Path,
    cwd: Path,
) -> list[Job]:
    """Send a job for each request, and note them; those that Slurm refuses are told of, and left out.

    places: what the requests were made of, for a retry. Raises SlurmError, with nothing sent, where it refuses all.
    """
    before = job_file(run_dir).read_bytes() if job_file(run_dir).exists() else None
    claim = _begin_anew(run_dir)
    jobs = _records(run_dir, requests, places, snapshot, cwd)
    # Before one can start, which reads it.
    write_atomic(job_file(run_dir), job_text(jobs[0], ""))
    sent: list[Job] = []
    try:
        refused = []
        for job, request in zip(jobs, requests, strict=True):
            try:
                sent.append(_send(run_dir, recipe, job, request, claim))
            except SlurmError as error:
                refused.append(f"{request.in_words}: {error}")
        if not sent:
            raise SlurmError("\n".join(refused))
    except BaseException:
        for job in sent:
            with contextlib.suppress(ValueError):
                ask(["scancel", job.job_id], client=job.client)
        _put_back(job_file(run_dir), before)
        raise
    for line in refused:
        print(f"not sent to {line}", file=sys.stderr)
    first = replace(jobs[0], **{key: getattr(sent[0], key) for key in _OF_REQUEST})
    write_atomic(job_file(run_dir), job_text(first, sent[0].job_id))
    _leave_to_the_first(run_dir)
    return sent


_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
"""What file systems say that make no hard links."""
_OF_REQUEST = ("cluster", "profile", "nodes", "ranks", "gpus_per_node", "client", "request")
"""What of a job's record differs from request to request."""


def end_requests(run_dir: Path) -> None:
    """Have the jobs by which a run was to wait before end: those that can be reached now, others when they start."""
    if (run_dir / "slurm" / TOKEN).exists():
        write_atomic(run_dir / "slurm" / TOKEN, "")
        cancel_waiting(all_sent(run_dir))


def _begin_anew(run_dir: Path) -> dict[str, Any]:
    """Free the run of what was sent before; returns by what a job knows that it is of this submission, and here."""
    end_requests(run_dir)
    file = run_dir / "slurm" / TOKEN
    token = secrets.token_hex(8)
    write_atomic(file, token)
    try:
        while follow(run_dir, newest_claim(run_dir), {"free": token}) is None:
            pass
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise ValueError(f"{run_dir}: {error.strerror}") from error
        raise ValueError(
            f"{run_dir}: {error.strerror}: of several jobs that wait for one run the first makes a link, which this "
            "file system has not; choose another run.root, or one cluster and one QOS"
        ) from error
    return {"token": token, "inode": file.stat().st_ino}


def _records(
    run_dir: Path, requests: Sequence[Request], places: Sequence[Place], snapshot: Path, cwd: Path
) -> list[Job]:
    """Of each request, without an id, in folders that no job sent before uses; the first has what is of all."""
    folders = (re.fullmatch(r"request-(\d+)", path.name) for path in (run_dir / "slurm").glob("request-*"))
    used = max((int(found[1]) for found in folders if found), default=0)
    jobs, identities = [], {}
    for number, request in enumerate(requests, used + 1):
        job, client = (
            Job.to_send(run_dir.name, request.cluster, request.profile, snapshot, cwd),
            _client(request.profile),
        )
        if (key := controller(client)) not in identities:
            identities[key] = _identity(client)
        jobs.append(replace(job, client=client, identity=identities[key], request=f"request-{number}"))
    asked = [{"cluster": place.cluster, "profile": place.profile.model_dump(mode="json")} for place in places]
    return [replace(jobs[0], requests=[job.request for job in jobs], asked=asked), *jobs[1:]]


def _client(profile: Profile) -> dict[str, str]:
    """What reaches the cluster also from a node of another: SLURM_CONF of this shell, or that it has none."""
    return {"SLURM_CONF": os.environ.get("SLURM_CONF", ""), **profile.client}


def _identity(client: Mapping[str, str]) -> str:
    # Where it does not answer, Slurm refuses the job as well.
    try:
        return identity_of(client)
    except ValueError:
        return ""


def _send(run_dir: Path, recipe: Recipe, job: Job, request: Request, claim: dict[str, Any]) -> Job:
    folder = run_dir / "slurm" / job.request
    folder.mkdir()
    record = folder / "job.json"
    write_atomic(record, job_text(job, ""))
    submission = submission_of(run_dir, recipe, request, Path(job.snapshot), Path(job.folder))
    profile = request.profile.model_copy(update={"client": job.client})
    known = {**claim, "name": job.request, "cluster": request.cluster}
    submission = replace(submission, profile=profile, folder=folder, claim=known)
    job_id = submit_jobs(submission)[0]
    write_atomic(record, job_text(job, job_id))
    return replace(job, job_id=job_id)


def _leave_to_the_first(run_dir: Path) -> None:
    """Cancel what waits where one has started: it did not know the jobs that were sent after it."""
    claim = newest_claim(run_dir)
    if claim and (holder := claim.content.get("request")):
        cancel_waiting([one for one in all_sent(run_dir) if one.name != holder])


def _put_back(file: Path, content: bytes | None) -> None:
    if content is None:
        file.unlink(missing_ok=True)
    else:
        write_atomic(file, content)
