"""What Slurm says of a job that waits: what it asked for, its place, and when others like it would start."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from slurm.control import TIMEOUT_SECONDS, ask, unix_time
from slurm.profile import seconds
from slurm.sbatch import without_other_jobs

_FIELDS = (
    *("Reason", "Priority", "Partition", "NumNodes", "TimeLimit", "SubmitTime", "EligibleTime", "StartTime"),
    *("Dependency", "QOS", "Account", "Features", "Reservation", "SchedNodeList", "Restarts", "Licenses", "JobState"),
)


class Ahead(NamedTuple):
    """The queue of a job's partitions."""

    place: int
    """By priority, from 1."""
    waiting: int
    """Jobs that wait there, as far as Slurm shows them."""
    next_start: float | None
    """Unix time at which the first of those with a higher priority is expected to start."""


class Partition(NamedTuple):
    name: str
    is_up: bool
    limit: float | None
    """Seconds; None without one."""
    idle: int
    """Nodes."""


class Start(NamedTuple):
    """When a job that asks for something else would start."""

    time: float
    """Unix time."""
    preempts: int
    """Jobs that would have to make room."""


def show_job(job_id: str) -> dict[str, str]:
    """What the controller knows of a job, by its own names; what it calls null is left out. Raises ValueError."""
    told = ask(["scontrol", "show", "job", "-o", job_id]).split("\n")[0]
    found = {name: re.search(rf"(?:^| ){name}=(.*?)(?= [A-Z][\w:/]*=|\s*$)", told) for name in _FIELDS}
    values = {name: match[1] for name, match in found.items() if match}
    return {name: value for name, value in values.items() if value not in ("(null)", "N/A", "None", "Unknown", "")}


def ahead_of(job_id: str, partitions: str, priority: int) -> Ahead:
    """A job's place among those that wait in its partitions. Raises ValueError where Slurm does not answer."""
    shown = "--format=%i|%Q|%S"
    told = ask(["squeue", "--noheader", "--states=PENDING", f"--partition={partitions}", shown])
    rows = [line.split("|") for line in told.splitlines() if line.count("|") == 2]
    others = {name: (int(rank), unix_time(start)) for name, rank, start in rows if name != job_id and rank.isdigit()}
    # Of the same priority that which was sent first is first.
    higher = [
        start
        for name, (rank, start) in others.items()
        if rank > priority or (rank == priority and _number(name) < _number(job_id))
    ]
    return Ahead(len(higher) + 1, len(others) + 1, min(filter(None, higher), default=None))


def _number(job_id: str) -> int:
    return int((re.match(r"\d+", job_id) or ["0"])[0])


def partitions() -> list[Partition]:
    """Those that this user may see. Raises ValueError where Slurm does not answer."""
    told = ask(["sinfo", "--noheader", "--format=%R|%a|%l|%F"])
    found = []
    for line in told.splitlines():
        name, state, limit, nodes = line.split("|")
        found.append(Partition(name, state == "up", _limit(limit), _count(nodes.split("/")[1])))
    return found


def _limit(text: str) -> float | None:
    try:
        # As 1-00:00:00, or 30:00 of minutes and seconds.
        return float(seconds(text))
    except ValueError:
        return None


def _count(text: str) -> int:
    """Of a number that Slurm may write as 1K."""
    found = re.fullmatch(r"([\d.]+)(K?)", text)
    return int(float(found[1]) * (1000 if found[2] else 1)) if found else 0


def would_start(script: Path, options: Sequence[str]) -> Start | None:
    """When a job of this batch script would start with other options of sbatch; None where Slurm would refuse it.

    Raises ValueError where Slurm does not answer.
    """
    command = ["sbatch", "--test-only", *options, str(script)]
    with without_other_jobs():
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            raise ValueError(f"Slurm does not answer: sbatch took more than {TIMEOUT_SECONDS} s") from None
        except OSError as error:
            raise ValueError(f"sbatch cannot be run: {error.strerror}") from error
    found = re.search(r"to start at (\d+-\d+-\d+T\d+:\d+:\d+)", done.stderr)
    if done.returncode or not found:
        return None
    preempted = re.search(r"Preempts: (\S+)", done.stderr)
    begin = time.mktime(time.strptime(found[1], "%Y-%m-%dT%H:%M:%S"))
    return Start(begin, len(preempted[1].split(",")) if preempted else 0)
