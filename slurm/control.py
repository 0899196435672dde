"""What a job asks of Slurm about itself. Only the standard library."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
import time
import zlib

PORTS = range(10_000, 32_000)
"""Below those that Linux hands out to outgoing connections."""
TIMEOUT_SECONDS = 60


def hostnames() -> list[str]:
    """The job's nodes, rank 0's first."""
    return said("scontrol", "show", "hostnames", os.environ.get("SLURM_JOB_NODELIST", "")).split() or [
        socket.gethostname()
    ]


def said(*command: str) -> str:
    """The output of a command; empty where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def job_state(job: str) -> str | None:
    """The state that the controller gives a job; None where it knows none."""
    found = re.search(r"\bJobState=(\w+)", said("scontrol", "show", "job", "-o", job))
    return found[1] if found else None


def end_time(job: str) -> float | None:
    """Unix time at which Slurm ends a job; None where it has no limit."""
    found = re.search(r"\bEndTime=(\S+)", said("scontrol", "show", "job", "-o", job))
    return _time(found[1]) if found else None


def was_preempted(job: str, start: float) -> bool:
    """Whether accounting, where there is one, says that the attempt of a job that began then was preempted."""
    if shutil.which("sacct") is None:
        return False
    for row in said("sacct", "-n", "-P", "-X", "-D", "-j", job, "-o", "Start,State").splitlines():
        begun, _, state = row.partition("|")
        if state.startswith("PREEMPTED") and abs((_time(begun) or 0) - start) < 60:
            return True
    return False


def _time(text: str) -> float | None:
    with contextlib.suppress(ValueError, OverflowError):
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    return None


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
