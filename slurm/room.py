"""What a partition allows, has free, and has planned: one question each. Only the standard library, Python 3.9."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import NamedTuple

from slurm.control import ask, unix_time
from slurm.queue import duration

IDLE = ("idle", "plnd")
"""States, in sinfo's short form, of nodes that nobody uses: the second until a job starts that waits for more."""


class Room(NamedTuple):
    """Of one partition, or of several together."""

    limit: int | None
    """Minutes of the smallest time limit; None without one."""
    idle: int
    """Nodes that nobody uses."""


def room(partition: str | None, client: Mapping[str, str] | None = None) -> Room:
    """What partitions (with commas; None: the default one) have. Raises ValueError where Slurm does not answer."""
    chosen = [f"--partition={partition}"] if partition else []
    told = ask(["sinfo", "--noheader", *chosen, "--format=%P|%l|%t|%D"], client=client)
    rows = [line.split("|") for line in told.splitlines()]
    rows = [row for row in rows if len(row) == 4 and (partition or row[0].endswith("*"))]
    limits = [seconds for row in rows if (seconds := duration(row[1])) is not None]
    idle = sum(int(row[3]) for row in rows if row[2] in IDLE)
    return Room(math.floor(min(limits) / 60) if limits else None, idle)


def planned_starts(
    partition: str | None, but: str | None = None, client: Mapping[str, str] | None = None
) -> list[float]:
    """Unix times at which Slurm plans to start jobs that wait. Raises ValueError where it does not answer.

    Empty for a user who sees but jobs of his own: of a job that is not shown the hole may be shorter.
    but: a job that is left out.
    """
    chosen = [f"--partition={partition}"] if partition else []
    told = ask(["squeue", "--noheader", "--states=PENDING", *chosen, "--format=%A|%U|%S"], client=client)
    rows = [line.split("|") for line in told.splitlines() if line.count("|") == 2]
    rows = [row for row in rows if row[0] != but]
    if os.getuid() and all(row[1] == str(os.getuid()) for row in rows):
        return []
    return [start for _, _, told in rows if (start := unix_time(told)) is not None]
