"""What a job asks of Slurm about itself. Only the standard library."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence

from resnet.process.environment import is_launchers

PORTS = range(10_000, 32_000)
"""Below those that Linux hands out to outgoing connections."""
TIMEOUT_SECONDS = 10
"""For one question; slurmctld's own clients would wait for minutes on one that hangs."""
PATIENT_SECONDS = 60
"""For one that a job asks, which has the time."""


def hostnames() -> list[str]:
    """The job's nodes, rank 0's first."""
    return said("scontrol", "show", "hostnames", os.environ.get("SLURM_JOB_NODELIST", "")).split() or [
        socket.gethostname()
    ]


def nodes_of(job: str) -> list[str]:
    """The nodes that the controller says a job has now, the first one first; [] where it does not answer."""
    found = re.search(r"\sNodeList=(\S+)", said("scontrol", "show", "job", "-o", job))
    return said("scontrol", "show", "hostnames", found[1]).split() if found else []


def client_environment(client: Mapping[str, str] | None) -> dict[str, str]:
    """Environment for one of Slurm's own commands, without what a user's settings would change of its answer.

    client: variables that choose the cluster, as SLURM_CONF, an empty one to be unset; None or empty: the cluster of
    this process.
    """
    dropped = ("SQUEUE_", "SACCT_", "SINFO_", *(("SLURM_", "SBATCH_", "SCANCEL_") if client else ()))
    kept = {name: value for name, value in os.environ.items() if name == "SLURM_CONF" or not name.startswith(dropped)}
    return {name: value for name, value in {**kept, **(client or {})}.items() if value or name not in (client or {})}


@contextlib.contextmanager
def reaching(client: Mapping[str, str] | None) -> Iterator[None]:
    """Within it Slurm's commands reach the cluster of a client's environment, whoever starts them."""
    before = {name: os.environ.get(name) for name in client or {}}
    _set(client or {})
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value:
            os.environ[name] = value
        else:
            os.environ.pop(name, None)


@contextlib.contextmanager
def without_other_jobs(client: Mapping[str, str] | None = None) -> Iterator[None]:
    """Without the variables that another job, or a user's defaults for sbatch, would give to the one that is sent.

    client: variables that choose the cluster, empty ones to be unset.
    """
    with reaching(client):
        before = dict(os.environ)
        for name in before:
            chosen = name == "SLURM_CONF" or name in (client or {})
            if is_launchers(name) or (name.startswith(("SBATCH_", "SLURM_")) and not chosen):
                del os.environ[name]
        try:
            yield
        finally:
            os.environ.update(before)


def controller(client: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """What tells one controller that commands reach from another, by the variables that choose it."""
    client = client or {}
    # With a client's variables the shell's SLURM_CLUSTERS is dropped.
    names = ("SLURM_CONF",) if client else ("SLURM_CONF", "SLURM_CLUSTERS")
    shell = {name: os.environ.get(name, "") for name in names}
    return tuple(sorted((name, value) for name, value in {**shell, **client}.items() if value))


def ask(command: Sequence[str], seconds: float | None = None, client: Mapping[str, str] | None = None) -> str:
    """Standard output of one of Slurm's own commands. Raises ValueError with its own short words where it fails.

    client: of the cluster that is asked, as `client_environment` takes it.
    """
    # SQUEUE_PARTITION and the like would hide jobs, SLURM_TIME_FORMAT and SLURM_BITSTR_LEN change what is printed.
    environment = client_environment(client)
    seconds = seconds or TIMEOUT_SECONDS
    environment.update(SLURM_TIME_FORMAT="%s", SLURM_BITSTR_LEN="0")
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"Slurm does not answer: {command[0]} took more than {seconds:g} s") from None
    except OSError as error:
        raise ValueError(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if line.strip()]
        last = re.sub(r"^\w+: ((error|fatal): )?", "", told[-1].strip()) if told else f"exit code {done.returncode}"
        raise ValueError(f"Slurm does not answer: {command[0]}: {last}")
    return done.stdout


def said(*command: str, seconds: float = PATIENT_SECONDS, client: Mapping[str, str] | None = None) -> str:
    """The output of a command; empty where it fails."""
    try:
        return ask(command, seconds, client)
    except ValueError:
        return ""


def job_state(job: str) -> str | None:
    """The state that the controller gives a job; None where it knows none."""
    found = re.search(r"\bJobState=(\w+)", said("scontrol", "show", "job", "-o", job))
    return found[1] if found else None


def end_time(job: str) -> float | None:
    """Unix time at which Slurm ends a job; None where it has no limit."""
    found = re.search(r"\bEndTime=(\S+)", said("scontrol", "show", "job", "-o", job))
    return unix_time(found[1]) if found else None


def nodes_that_are_gone(names: Sequence[str]) -> list[str]:
    """Those of these nodes that are down by the controller's word, or do not answer it."""
    if not names:
        return []
    # Up to Slurm 20 an asterisk says that a node does not answer.
    told = said("scontrol", "show", "node", "-o", ",".join(names))
    found = re.findall(r"^NodeName=(\S+).*?\bState=(\S+)", told, re.MULTILINE)
    return [name for name, state in found if any(word in state for word in ("DOWN", "NOT_RESPONDING", "*"))]


def was_preempted(job: str, start: float) -> bool:
    """Whether accounting, where there is one, says that the attempt of a job that began then was preempted.

    start: unix time of the job's start, of this restart of it.
    """
    if shutil.which("sacct") is None:
        return False
    for row in said("sacct", "-n", "-P", "-X", "-D", "-j", job, "-o", "Start,State").splitlines():
        begun, _, state = row.partition("|")
        if state.startswith("PREEMPTED") and abs((unix_time(begun) or 0) - start) < 60:
            return True
    return False


def give_node_back(kept: Sequence[str]) -> str | None:
    """Keep only these of the job's nodes, so that Slurm does not end the job with another; returns why it could not.

    That on which a batch script runs has to be among them.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Where scontrol leaves two scripts that set the shell's variables anew.
        words = ["scontrol", "update", f"JobId={os.environ['SLURM_JOB_ID']}", f"NodeList={','.join(kept)}"]
        try:
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=PATIENT_SECONDS)
        except subprocess.TimeoutExpired:
            return f"Slurm does not answer: scontrol took more than {PATIENT_SECONDS} s"
    return None if done.returncode == 0 else " ".join(done.stderr.split())


def unix_time(text: str) -> float | None:
    """Of a time as Slurm's commands print it under `ask`; None for its words (Unknown, N/A)."""
    return float(text) if text.isdigit() else None


def free_port(attempt: str, number: int = 0) -> int:
    """A port that nobody listens on here: first one of the attempt's own, so that jobs that start together differ.

    Two that both found the same one free would mix: a rank of one that joins the other's ranks leaves all to wait.
    attempt: text that no other job has. number: how many ports were tried in vain.
    """
    own = PORTS[zlib.crc32(attempt.encode()) % len(PORTS)]
    others = random.sample(PORTS, 50)
    for port in others if number else [own, *others]:
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("", port))
            return port
    return own
