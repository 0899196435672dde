"""The jobs by which one run waits in several places, as each of them sees the others. Standard library, Python 3.9."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from resnet.rundir.files import read_json, to_json, write_atomic
from slurm.control import ask, client_environment
from slurm.queue import STARTED, WAITING
from slurm.slicing import slice_now

SEND_SECONDS = 10.0
"""For one order or question of a job that is about to end."""
SENT_WITH = "RESNET_SENT_WITH"
"""The number of an open file of a batch script, of the environment that the job was sent with."""
KEEP_ENVIRONMENT = ("set +o posix", "exec 9< <(env -0 | base64 -w 0)", f"export {SENT_WITH}=9")
"""Shell lines for it, before those that change the environment: to another cluster that of a node is of no use. It
stays off the disk, since there may be secrets in it."""
OF_THIS_JOB = ("TMPDIR", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""Variables that Slurm has set for this job."""


class Sent(NamedTuple):
    """A job of the run."""

    name: str
    """Of its folder in the run's folder `slurm`, where its script, its jobs file and its record (job.json) are."""
    folder: Path
    job_id: str
    """Empty where it was not sent, or not yet."""
    client: dict[str, str]
    identity: str
    """Of its cluster, as `identity_of` has it; empty where that did not answer."""


class Outcome(NamedTuple):
    """What came of sending one again."""

    waits: bool
    line: str


def all_sent(run_dir: Path) -> list[Sent]:
    """All requests by which a run was sent last; empty for a run that waits in one place."""
    return [read_sent(run_dir, name) for name in read_json(run_dir / "slurm" / "job.json").get("requests") or ()]


def read_sent(run_dir: Path, name: str) -> Sent:
    folder = run_dir / "slurm" / name
    record = read_json(folder / "job.json")
    client, identity = dict(record.get("client") or {}), str(record.get("identity") or "")
    return Sent(name, folder, str(record.get("job_id") or ""), client, identity)


def identity_of(client: Mapping[str, str], seconds: float = SEND_SECONDS) -> str:
    """What tells a cluster from others, which may have the same name. Raises ValueError where it does not answer."""
    told = ask(["scontrol", "show", "config"], seconds, client)
    keys = r"^(ClusterName|SlurmctldHost\[0\]|SlurmctldPort)\s*=\s*(\S+)"
    return ", ".join(f"{key}={value}" for key, value in sorted(re.findall(keys, told, re.MULTILINE)))


def state_of(request: Sent, job_id: str, seconds: float = SEND_SECONDS) -> str | None:
    """Slurm's state of a request's job; None where its controller does not answer, or another did.

    Ids repeat over clusters, and a node may reach another controller by the same variables: the job that is meant is
    known by its script, which no other has.
    """
    try:
        told = ask(["scontrol", "show", "job", "-o", job_id], seconds, request.client)
    except ValueError:
        return None
    state, script = (re.search(pattern, told) for pattern in (r"\bJobState=(\w+)", r"\bCommand=(/.*?) WorkDir="))
    is_it = state and script and os.path.realpath(os.path.dirname(script[1])) == os.path.realpath(request.folder)
    return state[1] if state and is_it else None


def cancel_waiting(requests: Sequence[Sent]) -> list[Sent]:
    """Cancel those that wait; returns those that may yet start, or go back to the queue: all not known to be over."""
    return [request for request in requests if not _is_ended(request)]


def _is_ended(request: Sent) -> bool:
    state = state_of(request, request.job_id) if request.job_id else None
    if state not in WAITING:
        return state is not None and state not in STARTED
    try:
        ask(["scancel", "--state=PENDING", request.job_id], SEND_SECONDS, request.client)
    except ValueError:
        return False
    return True


def send_again(requests: Sequence[Sent], environment: Mapping[str, str], until: float) -> list[Outcome]:
    """Send those that are over by the scripts of their first time, all at the same time.

    environment: that of the submission. until: time.monotonic() by which to come to an end.
    """
    sent = [request for request in requests if request.job_id]
    with ThreadPoolExecutor(max(1, len(sent))) as threads:
        return list(threads.map(lambda request: _send_again(request, environment, until), sent))


def _send_again(request: Sent, environment: Mapping[str, str], until: float) -> Outcome:
    def seconds() -> float:
        left = until - time.monotonic()
        if left <= 0:
            raise ValueError("there was no time left for it")
        return min(SEND_SECONDS, left)

    try:
        state = state_of(request, request.job_id, seconds() / 2)
        if state and state in WAITING | STARTED:
            return Outcome(state in WAITING, f"{request.name} is job {request.job_id} ({state.lower()})")
        if request.identity and (found := identity_of(request.client, seconds())) != request.identity:
            raise ValueError(
                f"{request.client} is {found} here, and not {request.identity}: `client` in its profile has to reach "
                "its cluster from the nodes of the others"
            )
        return Outcome(True, f"{request.name} is job {_send(request, environment, seconds())}")
    except (ValueError, OSError) as error:
        return Outcome(False, f"{request.name} was not sent again: {' '.join(str(error).split())}")


def _send(request: Sent, environment: Mapping[str, str], seconds: float) -> str:
    kept = {name: value for name, value in environment.items() if not name.startswith(("SLURM", "SBATCH"))}
    kept = {name: value for name, value in kept.items() if name not in OF_THIS_JOB}
    if conf := client_environment(request.client).get("SLURM_CONF"):
        kept["SLURM_CONF"] = conf
    kept |= {name: value for name, value in request.client.items() if value}
    script = request.folder / f"{request.job_id}_submission.sh"
    words = ["sbatch", "--parsable", *_limits(request), str(script)]
    try:
        done = subprocess.run(words, env=kept, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise ValueError(f"sbatch took more than {seconds:.0f} s; should Slurm have the job, it joins in") from None
    if done.returncode:
        raise ValueError(done.stderr)
    job_id = done.stdout.split(";")[0].strip()
    _give_files(request.folder, job_id)
    note_job(request.folder, job_id)
    return job_id


def _limits(request: Sent) -> list[str]:
    """For sbatch: the slice that is worth having now, where the run is sent in slices."""
    for file in request.folder.glob("*.jobs.json"):
        jobs = read_json(file)
        if jobs.get("slice"):
            wanted = slice_now(jobs, Path(jobs["runs"][0]))
            return [f"--time={wanted.most}", f"--time-min={wanted.least}"]
    return []


def arrive(run_dir: Path, name: str, job_id: str) -> None:
    """Note a job that has started, by itself: whoever sent it may not have lived to.

    One that was sent in its place, and waits, is cancelled.
    """
    request = read_sent(run_dir, name)
    if request.job_id != job_id:
        _give_files(request.folder, job_id)
        if request.job_id:
            cancel_waiting([request])
        note_job(request.folder, job_id)


def _give_files(folder: Path, job_id: str) -> None:
    """What a job's tasks, and whoever sends it again, look for by its id: all jobs of a request have the same."""
    for name in ("submitted.pkl", "submission.sh"):
        # None of the first job, which submitit gives its own.
        if old := next(folder.glob(f"[0-9]*_{name}"), None):
            with contextlib.suppress(FileExistsError):
                os.link(old, folder / f"{job_id}_{name}")


def note_job(folder: Path, job_id: str, **fields: Any) -> None:
    """Note the job of a request in its record."""
    record = folder / "job.json"
    write_atomic(record, to_json({**read_json(record), **fields, "job_id": job_id}, indent=1))


def sent_with() -> dict[str, str]:
    """The environment that this job was sent with; it is read once."""
    told = ""
    if number := os.environ.pop(SENT_WITH, ""):
        with contextlib.suppress(OSError, ValueError), os.fdopen(int(number), "rb") as file:
            told = os.fsdecode(base64.b64decode(file.read()))
    if not told:
        return dict(os.environ)
    return dict(row.split("=", 1) for row in told.split("\0") if "=" in row)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
