"""What Slurm says of a job that waits: what it asked for, its place, and what is beside it."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from slurm.control import ask, unix_time
from slurm.profile import seconds

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


def show_job(job_id: str) -> dict[str, str]:
    """What the controller knows of a job, by its own names; what it calls null is left out. Raises ValueError."""
    lines = ask(["scontrol", "show", "job", "-o", job_id]).split("\n")
    told = next((line for line in lines if line.startswith("JobId=")), "")
    found = {name: re.search(rf"(?:^| ){name}=(.*?)(?= [A-Z][\w:/]*=|\s*$)", told) for name in _FIELDS}
    values = {name: match[1] for name, match in found.items() if match}
    return {name: value for name, value in values.items() if value not in ("(null)", "N/A", "None", "Unknown", "")}


def ahead_of(job_id: str, partitions: str, priority: int, same: Collection[str] = ()) -> Ahead:
    """A job's place among those that wait in its partitions. Raises ValueError where Slurm does not answer.

    same: jobs of the same run, of which one trains it and the others end: none is ahead of another.
    """
    shown = "--format=%i|%Q|%S"
    told = ask(["squeue", "--noheader", "--states=PENDING", f"--partition={partitions}", shown])
    rows = [line.split("|") for line in told.splitlines() if line.count("|") == 2]
    ours = {job_id, *same}
    others = {name: (int(rank), unix_time(start)) for name, rank, start in rows if name not in ours and rank.isdigit()}
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
    # Up to Slurm 20 the cluster's name comes before, where it was asked for by that.
    for line in told.splitlines():
        if line.count("|") != 3:
            continue
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
