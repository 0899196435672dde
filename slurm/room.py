"""What a partition allows, has free, has planned, and who waits. Only the standard library, Python 3.9."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from slurm.control import ask, unix_time
from slurm.queue import duration

IDLE = ("idle", "idle~", "idle#", "plnd")
"""States, in sinfo's short form, of nodes that nobody uses: also those that Slurm has powered down, or powers up. The
last is of one that is kept until a job starts that waits for more. Other signs (idle*, idle$, idle%) are of nodes that
no job gets now."""
FOR_NODES = ("Resources", "Priority", "None")
"""Reasons of jobs that other nodes, or others' ends, would let start; the last until Slurm has looked at a new one."""


class Room(NamedTuple):
    """Of one partition, or of several together."""

    limit: int | None
    """Minutes of the smallest time limit; None without one."""
    idle: int
    """Nodes that nobody uses at all: one of which a job has a part is none, whatever else it has free."""
    sharing: tuple[str, ...] = ()
    """Partitions with any of the nodes, these among them."""


def room(partition: str | None, client: Mapping[str, str] | None = None) -> Room:
    """What partitions (with commas; None: the default one) have.

    Raises ValueError where Slurm does not answer, or shows no nodes of them.
    """
    # Hidden partitions too; each node is told of once for each of its partitions.
    told = ask(["sinfo", "--noheader", "--all", "--Node", "--format=%P|%l|%t|%N"], client=client)
    rows = [line.split("|") for line in told.splitlines() if line.count("|") == 3]
    wanted = partition.split(",") if partition else [row[0].rstrip("*") for row in rows if row[0].endswith("*")]
    own = [row for row in rows if row[0].rstrip("*") in wanted]
    if not own:
        raise ValueError(f"sinfo shows no nodes of {f'partition {partition}' if partition else 'a default partition'}")
    limits = [seconds for row in own if (seconds := duration(row[1])) is not None]
    nodes = {row[3] for row in own}
    idle = {row[3] for row in own if row[2] in IDLE}
    sharing = sorted({row[0].rstrip("*") for row in rows if row[3] in nodes})
    return Room(math.floor(min(limits) / 60) if limits else None, len(idle), tuple(sharing))


def others_wait(partitions: Sequence[str]) -> bool:
    """Whether a job waits in one of these partitions for nodes, or has some planned for it.

    Of jobs that the cluster hides nothing is known. Raises ValueError where Slurm does not answer.
    """
    chosen = f"--partition={','.join(partitions)}"
    told = ask(["squeue", "--noheader", "--all", "--states=PENDING", chosen, "--format=%Y|%r"])
    rows = [line.split("|", 1) for line in told.splitlines() if "|" in line]
    return any(why in FOR_NODES or planned not in ("", "N/A", "(null)") for planned, why in rows)


def planned_starts(
    partition: str | None, but: str | None = None, client: Mapping[str, str] | None = None
) -> list[float]:
    """Unix times at which Slurm plans to start jobs that wait. Raises ValueError where it does not answer.

    Empty for a user who sees but jobs of his own: of a job that is not shown the hole may be shorter.
    but: a job that is left out.
    """
    chosen = [f"--partition={partition}"] if partition else []
    told = ask(["squeue", "--noheader", "--all", "--states=PENDING", *chosen, "--format=%A|%U|%S"], client=client)
    rows = [line.split("|") for line in told.splitlines() if line.count("|") == 2]
    rows = [row for row in rows if row[0] != but]
    if os.getuid() and all(row[1] == str(os.getuid()) for row in rows):
        return []
    return [start for _, _, told in rows if (start := unix_time(told)) is not None]
