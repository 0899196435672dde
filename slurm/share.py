"""How many trials of a sweep run at once where that is to be what is idle. Only the standard library, Python 3.9.

The rule: as many as fit on what nobody uses, and while other jobs wait for nodes of the partition one less each time a
trial ends, down to one. It is applied when the sweep is sent and at the end of each trial.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from slurm.control import ask
from slurm.patience import spread

_FOR_NODES = ("Resources", "Priority")
"""Reasons of jobs that other nodes, or others' ends, would let start; all else waits for something else."""
_FORM = "--Format=NodeHost:100,StateCompact:20,CPUsState:40,Gres:200,GresUsed:200"


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
    }


def trials_at_once(trial: Mapping[str, Any], client: Mapping[str, str] | None = None) -> int:
    """How many to begin with. client: environment of Slurm's commands. Raises ValueError where it does not answer."""
    return next_limit(0, _fitting(trial, client), _queue(trial, None, client).others_wait)


def next_limit(running: int, fitting: int, others_wait: bool) -> int:
    """How many may run at once. running: trials that do, that which ends included. fitting: more, on what is idle."""
    return max(1, running - 1 if others_wait else running + fitting)


def share(trial: Mapping[str, Any] | None) -> None:
    """At the end of a trial: let as many of its array run at once as is fair by now. Trouble with it fails nothing."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if not trial or not array:
        return
    spread()
    try:
        queue = _queue(trial, array)
        limit = next_limit(queue.running, 0 if queue.others_wait else _fitting(trial), queue.others_wait)
        ask(["scontrol", "update", f"JobId={array}", f"ArrayTaskThrottle={limit}"])
    except ValueError as error:
        # Also where it was the last of its array.
        print(f"how many trials run at once stays as it is: {error}", file=sys.stderr)


def _fitting(trial: Mapping[str, Any], client: Mapping[str, str] | None = None) -> int:
    told = ask(["sinfo", "--noheader", "--Node", *_partition(trial), _FORM], client=client)
    return fitting(told.splitlines(), trial)


def fitting(lines: Sequence[str], trial: Mapping[str, Any]) -> int:
    """How many trials fit on nodes. lines: of sinfo, of each node its name, state, CPUs, GPUs and those in use."""
    # A node is told of once for each of several partitions.
    rows = {row[0]: row for line in lines if len(row := line.split()) == 5}
    places = [_places(row, trial) for row in rows.values()]
    return sum(places) if trial["nodes"] == 1 else sum(map(bool, places)) // trial["nodes"]


def _places(row: Sequence[str], trial: Mapping[str, Any]) -> int:
    """How many trials fit on a node."""
    _, state, cpus, gpus, gpus_used = row
    if state not in ("idle", "mix") or (trial["exclusive"] and state != "idle"):
        return 0
    # Allocated/idle/other/total.
    places = int(cpus.split("/")[1]) // trial["cores"]
    if trial["gpus"]:
        kind = trial["gpu_type"]
        places = min(places, (_gpus(gpus, kind) - _gpus(gpus_used, kind)) // trial["gpus"])
    return min(1, places) if trial["exclusive"] else places


def _gpus(text: str, kind: str | None) -> int:
    """Of gpu:2 or gpu:a100:4(S:0-1),...; of one type where that is given."""
    found = re.findall(r"gpu(?::([^:,(]+))?:(\d+)", text)
    return sum(int(number) for name, number in found if not kind or name == kind)


def _queue(trial: Mapping[str, Any], array: str | None, client: Mapping[str, str] | None = None) -> Queue:
    command = ["squeue", "--noheader", "--states=PENDING,RUNNING,CONFIGURING", *_partition(trial), "--format=%F|%T|%r"]
    rows = [line.split("|", 2) for line in ask(command, client=client).splitlines() if line.count("|") >= 2]
    running = sum(job == array and state != "PENDING" for job, state, _ in rows)
    return Queue(running, any(job != array and state == "PENDING" and why in _FOR_NODES for job, state, why in rows))


def _partition(trial: Mapping[str, Any]) -> list[str]:
    return [f"--partition={trial['partition']}"] if trial["partition"] else []
