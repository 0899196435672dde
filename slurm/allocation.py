"""An allocation that a user holds (salloc, srun --pty, their own batch script): what it has, and a run's profile."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from recipes.text import format_duration, plural
from slurm.control import ask, unix_time
from slurm.profile import TIME, Profile, change_profile

APPLY = frozenset(
    [
        *("nodes", "spare_nodes", "cpus_per_rank", "signal_lead", "max_requeues", "setup", "container", "srun_args"),
        *("python", "run_root", "scratch", "stage", "stage_environment", "rank_logs", "check", "interface"),
        "environment",
    ]
)
"""Keys of a profile that still mean something where the nodes are there already."""


class NotHeld(ValueError):
    """A job that has no nodes now."""


class Node(NamedTuple):
    """What an allocation has of a node."""

    name: str
    cpus: int
    gpus: int
    kinds: tuple[str, ...] = ()
    """Of the GPUs, where Slurm has names for them."""


class Allocation(NamedTuple):
    """A job whose nodes a user holds."""

    job_id: str
    """As squeue names it: "12", or "12_3" in an array."""
    number: str
    """Slurm's own, 15, which differs in an array."""
    name: str
    """In the queue."""
    partition: str | None
    limit: str
    """As Slurm writes it, UNLIMITED where there is none."""
    left: float | None
    """Seconds to its end; None without one."""
    nodes: list[Node]
    submitted: str = ""
    """Unix time: ids begin anew where a cluster is set up again, and repeat over clusters."""


class Fit(NamedTuple):
    """How a run is placed in an allocation."""

    profile: Profile
    nodes: list[Node]
    """Those that are used, spare ones last."""
    notes: list[str]
    """What of the allocation is not used, in words."""


def read_allocation(job_id: str, client: Mapping[str, str] | None = None) -> Allocation:
    """What Slurm says of a job. Raises ValueError unless it runs, is this user's, and has nodes.

    client: as `slurm.control.ask` takes it.
    """
    try:
        said = ask(["scontrol", "show", "job", "-d", "-o", job_id], client=client)
    except ValueError as error:
        if "Invalid job id" in str(error):
            raise NotHeld(f"job {job_id}: Slurm knows no job of that number, or no longer (squeue --me)") from None
        raise
    # Of a heterogeneous job the first component.
    line = said.split("\n", 1)[0]
    state, user = _word(line, "JobState"), re.search(r"\bUserId=(\S*)\((\d+)\)", line)
    if user and int(user[2]) != os.getuid():
        raise ValueError(f"job {job_id} is {user[1]}'s: a run trains in an allocation of your own")
    if state != "RUNNING":
        waits = (
            f"waits ({_word(line, 'Reason')}), and has no nodes yet" if state == "PENDING" else f"is {state.lower()}"
        )
        raise NotHeld(f"job {job_id} {waits}: squeue --me lists what you hold, launch submit sends a run of its own")
    end = unix_time(_word(line, "EndTime"))
    array = _word(line, "ArrayJobId"), _word(line, "ArrayTaskId")
    return Allocation(
        job_id="_".join(array) if all(array) else _word(line, "JobId"),
        number=_word(line, "JobId"),
        name=_word(line, "JobName"),
        partition=_word(line, "Partition") or None,
        limit=_word(line, "TimeLimit"),
        left=None if end is None else end - time.time(),
        nodes=_nodes(line),
        submitted=_word(line, "SubmitTime"),
    )


def fit(
    allocation: Allocation,
    base: Mapping[str, Any] | None,
    overrides: Sequence[str],
    gpus: int | None = None,
    cpu_ranks: int | None = None,
    taken: Iterable[str] = (),
) -> Fit:
    """The profile of a run in an allocation, one rank a GPU.

    base: profile whose container, set-up and the like count here too. overrides: `slurm.KEY=VALUE`. gpus: of each
    node; None: as many as use the most. cpu_ranks: of each node, without GPUs; 0: one where there are none. taken:
    nodes on which another run trains. Raises ValueError for what the allocation cannot give.
    """
    job = f"job {allocation.job_id}"
    if wrong := [
        word for word in overrides if word.removeprefix("slurm.").partition("=")[0].partition(".")[0] not in APPLY
    ]:
        raise ValueError(f"{wrong[0]}: {job} has its nodes already; in it count slurm. {', '.join(sorted(APPLY))}")
    if not allocation.nodes:
        raise ValueError(
            f"{job}: Slurm does not say what it has of its nodes (scontrol show job -d {allocation.job_id})"
        )
    free = [node for node in allocation.nodes if node.name not in {*taken}]
    if not free:
        raise ValueError(
            f"{job} trains another run on each of its nodes: launch cancel ends it, and slurm.nodes=N leaves nodes free"
        )
    place = {
        "nodes": len(free),
        "spare_nodes": 0,
        "grow": None,
        "qos": None,
        "gpus_per_node": 0,
        "ranks_per_node": 1,
        "cpus_per_rank": 1,
        "partition": allocation.partition,
        "time": allocation.limit if TIME.fullmatch(allocation.limit) else "365-00",
    }
    asked = change_profile({**(base or {}), **place}, overrides, job)
    trained_on = asked.most_nodes if any(word.startswith("slurm.nodes=") for word in overrides) else None
    gpus = 0 if cpu_ranks else _gpus(free, gpus, trained_on, asked.spare_nodes, job)
    ranks = gpus or cpu_ranks or 1
    able = [node for node in free if node.gpus >= gpus]
    used = able[: trained_on + asked.spare_nodes] if trained_on else able
    place |= {"nodes": len(able), "gpus_per_node": gpus, "ranks_per_node": None if gpus else ranks}
    place |= {"cpus_per_rank": max(1, min(node.cpus for node in used) // ranks)}
    profile = change_profile({**(base or {}), **place}, overrides, job)
    wanted = profile.most_nodes + profile.spare_nodes
    if profile.is_range or wanted > len(able):
        raise ValueError(f"slurm.nodes={profile.nodes}: {job} has {plural(len(able), 'node')} for it; give one number")
    if allocation.left is not None and allocation.left <= profile.signal_lead:
        raise ValueError(
            f"{job} ends in {format_duration(allocation.left)}, and a run saves and stops slurm.signal_lead="
            f"{profile.signal_lead} s before that: give less, or hold new nodes"
        )
    return Fit(profile, able[:wanted], _notes(allocation, able[:wanted], gpus, {*taken}))


def _gpus(nodes: Sequence[Node], asked: int | None, trained_on: int | None, spare: int, job: str) -> int:
    """How many of each node: so that, over those that are trained on, they are the most, on the most nodes.

    asked: as many. trained_on: nodes; None: all that have so many. spare: nodes that have to have as many.
    """
    if asked is not None:
        if not any(node.gpus >= asked for node in nodes):
            has = ", ".join(f"{node.name} {node.gpus}" for node in nodes)
            raise ValueError(f"--gpus {asked}: no node of {job} has so many ({has})")
        return asked

    def in_all(gpus: int) -> tuple[bool, int, int]:
        able = sum(node.gpus >= gpus for node in nodes)
        return able >= (trained_on or 1) + spare, gpus * min(able, trained_on or able), -gpus

    return max({node.gpus for node in nodes}, key=in_all)


def _notes(allocation: Allocation, used: Sequence[Node], gpus: int, taken: set[str]) -> list[str]:
    idle = [node for node in allocation.nodes if node not in used]
    without = [f"{node.name} ({'another run' if node.name in taken else plural(node.gpus, 'GPU')})" for node in idle]
    spare = sum(node.gpus - gpus for node in used) if gpus else 0
    kinds = sorted({kind for node in used for kind in node.kinds}) if gpus else []
    return [
        *([f"not used: {', '.join(without)}"] if without else []),
        *([f"not used: {plural(spare, 'GPU')} of nodes that have more"] if spare else []),
        *([f"GPUs of several kinds, of which the slowest sets the pace: {', '.join(kinds)}"] if len(kinds) > 1 else []),
    ]


def _word(line: str, key: str) -> str:
    found = re.search(rf"(?:^|\s){key}=(\S*)", line)
    return found[1] if found else ""


def _nodes(line: str) -> list[Node]:
    """In Slurm's order, rank 0's first."""
    found = re.findall(r"\sNodes=(\S+) CPU_IDs=(\S*) Mem=\S* GRES=(\S*)", line)
    by_name = {
        name: Node(name, _count(cpus), _gpus_of(gres), _kinds_of(gres))
        for names, cpus, gres in found
        for name in expand(names)
    }
    return [by_name[name] for name in expand(_word(line, "NodeList")) if name in by_name]


def expand(names: str) -> list[str]:
    """Of Slurm's short form, as n[1-3],n9."""
    return ask(["scontrol", "show", "hostnames", names]).split() if "[" in names or "," in names else [names]


def _count(numbers: str) -> int:
    """Of ids, as in 0-3,6."""
    ranges = re.findall(r"(\d+)(?:-(\d+))?", numbers)
    return sum(int(last or first) - int(first) + 1 for first, last in ranges)


def _gpus_of(gres: str) -> int:
    """Of a node's gres, as gpu:a100:2(IDX:0-1),nvme:1."""
    return sum(int(count) for count in re.findall(r"\bgpu:(?:[^:(),]+:)?(\d+)", gres))


def _kinds_of(gres: str) -> tuple[str, ...]:
    return tuple(sorted(set(re.findall(r"\bgpu:([^:(),]*[^:(),\d][^:(),]*):?", gres))))
