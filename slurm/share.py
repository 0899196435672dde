"""How many trials of a sweep run at once where that is to be what is idle. Only the standard library, Python 3.9.

The rule: as many as fit on what nobody uses, and while other jobs wait for nodes of the partition one less each time a
trial ends, down to one. It is applied when the sweep is sent and at the end of each trial. What fits is found by cores,
GPUs and memory; of nodes that a trial may not have, those of `exclude` are known, and of `constraint` one feature or
several with & (docs/sweeps.md).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from slurm.control import ask, said
from slurm.patience import spread
from slurm.room import FOR_NODES

_FIELDS = ("NodeList:100", "StateCompact:20", "CPUsState:40", "Gres:200", "GresUsed:200", "Memory:30", "AllocMem:30")
_FORM = f"--Format={','.join([*_FIELDS, 'Partition:200', 'Features:500'])}"
_MEBIBYTES = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}


class Node(NamedTuple):
    """As sinfo tells of it, once for each of its partitions."""

    name: str
    state: str
    cpus: str
    """Allocated/idle/other/total."""
    gpus: str
    gpus_used: str
    memory: str
    """MiB."""
    memory_used: str
    partition: str
    """With an asterisk where it is that of jobs that name none."""
    features: str


class Queue(NamedTuple):
    """The partition's jobs."""

    running: int
    """Trials of the array that have their nodes."""
    others_wait: bool
    """Whether jobs that are not of the array wait for nodes."""


def trial_of(profile: Any) -> dict[str, Any]:
    """What a trial of this profile takes, as the batch script is told."""
    return {
        "partition": profile.partition,
        "nodes": profile.least_nodes,
        "gpus": profile.gpus_per_node,
        "gpu_type": profile.gpu_type,
        "cores": profile.cpus_per_rank * profile.local_ranks,
        "exclusive": profile.exclusive,
        "memory": profile.mem,
        "exclude": profile.exclude,
        "constraint": profile.constraint,
    }


def trials_at_once(trial: Mapping[str, Any], client: Mapping[str, str] | None = None) -> int:
    """How many to begin with. client: environment of Slurm's commands. Raises ValueError where it does not answer."""
    nodes = _nodes(trial, client)
    partition = trial["partition"] or next((one.partition[:-1] for one in nodes if one.partition[-1] == "*"), None)
    return next_limit(0, fitting(nodes, trial), _queue(partition, None, client).others_wait)


def next_limit(running: int, fitting: int, others_wait: bool) -> int:
    """How many may run at once. running: trials that do, that which ends included. fitting: more, on what is idle."""
    return max(1, running - 1 if others_wait else running + fitting)


def share(trial: Mapping[str, Any] | None) -> None:
    """At the end of a trial: let as many of its array run at once as is fair by now. Trouble with it fails nothing."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if not trial or not array:
        return
    # It has that which Slurm chose where the profile names none.
    trial = {**trial, "partition": trial["partition"] or os.environ.get("SLURM_JOB_PARTITION")}
    spread()
    try:
        queue = _queue(trial["partition"], array)
        free = 0 if queue.others_wait else fitting(_nodes(trial), trial)
        limit = next_limit(queue.running, free, queue.others_wait)
        ask(["scontrol", "update", f"JobId={array}", f"ArrayTaskThrottle={limit}"])
    except ValueError as error:
        # Also where it was the last of its array.
        print(f"how many trials run at once stays as it is: {error}", file=sys.stderr)


def _nodes(trial: Mapping[str, Any], client: Mapping[str, str] | None = None) -> list[Node]:
    told = ask(["sinfo", "--noheader", "--Node", *_partition(trial["partition"]), _FORM], client=client)
    return nodes_of(told.splitlines(), trial)


def nodes_of(lines: Sequence[str], trial: Mapping[str, Any]) -> list[Node]:
    """Those on which a trial may run, each once. lines: of sinfo."""
    told = [Node(*row) for line in lines if len(row := line.split()) == len(Node._fields)]
    # Without a default partition the site chooses one, and which is not known.
    chosen = [node for node in told if trial["partition"] or node.partition.endswith("*")] or told
    excluded = said("scontrol", "show", "hostnames", trial["exclude"]).split() if trial["exclude"] else []
    wanted = set()
    if trial["constraint"] and re.fullmatch(r"[\w.&-]+", trial["constraint"]):
        wanted = {*trial["constraint"].split("&")}
    able = [node for node in chosen if node.name not in excluded and wanted <= {*node.features.split(",")}]
    return [*{node.name: node for node in able}.values()]


def fitting(nodes: Sequence[Node], trial: Mapping[str, Any]) -> int:
    """How many trials fit on what nobody uses of these nodes."""
    places = [_places(node, trial) for node in nodes]
    return sum(places) if trial["nodes"] == 1 else sum(map(bool, places)) // trial["nodes"]


def _places(node: Node, trial: Mapping[str, Any]) -> int:
    """How many trials fit on a node."""
    if node.state not in ("idle", "mix") or (trial["exclusive"] and node.state != "idle"):
        return 0
    places = int(node.cpus.split("/")[1]) // trial["cores"]
    if trial["gpus"]:
        kind = trial["gpu_type"]
        places = min(places, (_gpus(node.gpus, kind) - _gpus(node.gpus_used, kind)) // trial["gpus"])
    # Of 0 a job gets all that a node has.
    memory = _mebibytes(trial["memory"]) or int(node.memory) if trial["memory"] else 0
    if memory:
        places = min(places, int((int(node.memory) - int(node.memory_used)) // memory))
    return min(1, places) if trial["exclusive"] else places


def _mebibytes(text: str) -> float:
    """Of memory as sbatch's --mem has it."""
    return int(text.rstrip("KMGT")) * _MEBIBYTES[text.lstrip("0123456789")]


def _gpus(text: str, kind: str | None) -> int:
    """Of gpu:2 or gpu:a100:4(S:0-1),...; of one type where that is given."""
    found = re.findall(r"gpu(?::([^:,(]+))?:(\d+)", text)
    return sum(int(number) for name, number in found if not kind or name == kind)


def _queue(partition: str | None, array: str | None, client: Mapping[str, str] | None = None) -> Queue:
    command = [
        "squeue",
        "--noheader",
        "--all",
        "--states=PENDING,RUNNING,CONFIGURING",
        *_partition(partition),
        "--format=%F|%T|%r",
    ]
    rows = [line.split("|", 2) for line in ask(command, client=client).splitlines() if line.count("|") >= 2]
    running = sum(job == array and state != "PENDING" for job, state, _ in rows)
    return Queue(running, any(job != array and state == "PENDING" and why in FOR_NODES for job, state, why in rows))


def _partition(name: str | None) -> list[str]:
    return [f"--partition={name}"] if name else []
