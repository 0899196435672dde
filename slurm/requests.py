"""The jobs by which one run waits in several places, as each of them sees the others. Standard library, Python 3.9."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from resnet.process.environment import ATTEMPT, CLUSTER, CORES, RANKS, SCRIPT
from resnet.rundir.files import read_json, to_json, write_atomic
from slurm.control import ask, client_environment
from slurm.queue import WAITING

SEND_SECONDS = 10.0
"""For one sbatch of a job that is about to end."""
OF_THIS_JOB = (ATTEMPT, CLUSTER, CORES, RANKS, SCRIPT, "TMPDIR", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""Variables that are none of another's."""


class Request(NamedTuple):
    """A job of the run."""

    name: str
    """Of its folder in the run's folder `slurm`, where its script, its jobs file and its record (job.json) are."""
    folder: Path
    job_id: str
    """Empty where it was not sent, or not yet."""
    client: dict[str, str]


def requests_of(run_dir: Path) -> list[Request]:
    """All by which a run was sent last; empty for a run that waits in one place."""
    return [_read(run_dir, name) for name in read_json(run_dir / "slurm" / "job.json").get("requests") or ()]


def _read(run_dir: Path, name: str) -> Request:
    folder = run_dir / "slurm" / name
    record = read_json(folder / "job.json")
    return Request(name, folder, str(record.get("job_id") or ""), dict(record.get("client") or {}))


def state_of(request: Request, job_id: str) -> str | None:
    """Slurm's state of a request's job; None where its controller does not answer, or another did.

    Ids repeat over clusters, and a node may reach another controller by the same variables: the job that is meant is
    known by its script, which no other has.
    """
    try:
        told = ask(["scontrol", "show", "job", "-o", job_id], SEND_SECONDS, request.client)
    except ValueError:
        return None
    state, script = (re.search(pattern, told) for pattern in (r"\bJobState=(\w+)", r"\bCommand=(/.*?) WorkDir="))
    is_it = state and script and os.path.realpath(os.path.dirname(script[1])) == os.path.realpath(request.folder)
    return state[1] if state and is_it else None


def cancel_waiting(requests: list[Request]) -> Iterator[Request]:
    """Cancel those that wait; gives those of which it is not known that they wait no longer."""
    for request in requests:
        state = state_of(request, request.job_id) if request.job_id else None
        if state in WAITING:
            try:
                ask(["scancel", "--state=PENDING", request.job_id], SEND_SECONDS, request.client)
            except ValueError:
                yield request
        elif state is None:
            yield request


def send_again(requests: list[Request], until: float) -> list[str]:
    """Send those that wait no longer by the scripts of their first time; says what came of it.

    until: time.monotonic() by which to come to an end. What Slurm refuses is left out.
    """
    told = []
    for request in requests:
        if not request.job_id or time.monotonic() > until:
            continue
        if state_of(request, request.job_id) in WAITING:
            told.append(f"{request.name} waits as job {request.job_id}")
            continue
        try:
            told.append(f"{request.name} is job {_send(request)}")
        except (ValueError, OSError, subprocess.SubprocessError) as error:
            told.append(f"{request.name} was not sent again: {' '.join(str(error).split())}")
    return told


def _send(request: Request) -> str:
    script = request.folder / f"{request.job_id}_submission.sh"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
    kept = {name: value for name, value in environment.items() if name not in OF_THIS_JOB}
    if conf := client_environment(request.client).get("SLURM_CONF"):
        kept["SLURM_CONF"] = conf
    kept |= {name: value for name, value in request.client.items() if value}
    done = subprocess.run(
        ["sbatch", "--parsable", str(script)], env=kept, capture_output=True, text=True, timeout=SEND_SECONDS
    )
    if done.returncode:
        raise ValueError(done.stderr)
    job_id = done.stdout.split(";")[0].strip()
    # What its tasks, and whoever sends it again, look for by the new id.
    for name in ("submitted.pkl", "submission.sh"):
        old = request.folder / f"{request.job_id}_{name}"
        if not (new := request.folder / f"{job_id}_{name}").exists():
            shutil.copyfile(old, new)
    note_job(request.folder, job_id)
    return job_id


def note_job(folder: Path, job_id: str, **fields: Any) -> None:
    """Note the job of a request in its record."""
    record = folder / "job.json"
    write_atomic(record, to_json({**read_json(record), **fields, "job_id": job_id}, indent=1))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
