"""Slurm's reasons for which a job waits, in words: a table, and the grammar of the limits' many names."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Move = Literal["hole", "nodes", "time", "partition"]
"""Other requests: what fits on idle nodes until others start, fewer nodes, a shorter limit, another partition."""
ANY: frozenset[Move] = frozenset({"hole", "nodes", "time", "partition"})
NODES: frozenset[Move] = frozenset({"nodes"})
TIME: frozenset[Move] = frozenset({"time"})
PARTITION: frozenset[Move] = frozenset({"partition"})


class Reason(NamedTuple):
    """What a reason of Slurm's means."""

    name: str
    """A cause's id."""
    words: str
    command: str = ""
    """What mends it: {job} is the job's id, {run} the run, {partition} its partition; empty: other requests may."""
    moves: frozenset[Move] = frozenset()
    """What else it could ask for so that this reason is gone."""
    advice: str = "nothing: it goes on by itself"
    """What there is to do where no command does it."""


AGAIN = "launch cancel {run} && launch retry {run}"
HELD = Reason("requeued_held", "the job was requeued and is held", "scontrol release {job}")
UNAVAILABLE = Reason(
    "nodes_unavailable",
    "nodes that it needs are down, drained or reserved",
    "sinfo -R -p {partition}",
    NODES | PARTITION,
)
PARTITION_DOWN = Reason("partition_down", "its partition takes no jobs at the moment", "sinfo -s", PARTITION)
ACCOUNTS = "sacctmgr show associations user=$USER format=account,partition,qos"
QOS = "sacctmgr show qos format=name,maxwall,maxtrespu,maxjobspu,grptres"

REASONS = {
    "None": Reason("not_looked_at", "Slurm has not looked at the job yet", moves=ANY),
    "Priority": Reason("priority", "jobs of higher priority are ahead", moves=ANY),
    "Resources": Reason("resources", "it is its turn, and too few nodes are free", moves=ANY),
    "Dependency": Reason("dependency", "another job has to end first", "squeue --me"),
    "DependencyNeverSatisfied": Reason("never", "the job that it follows has failed, so that it never starts", AGAIN),
    "BeginTime": Reason("begin_time", "it may not start before a set time, as after each requeue"),
    "JobHeldUser": Reason("held_user", "its user holds it", "scontrol release {job}"),
    "JobHeldAdmin": Reason(
        "held_admin", "an administrator holds it", advice="ask an administrator, who alone can release it"
    ),
    "job requeued in held state": HELD,
    "NonZeroExitCode": HELD,
    "launch failed requeued held": Reason(
        "launch_failed",
        "a node could not start it (prolog, home folder, user), and it is held",
        "scontrol release {job}",
    ),
    "JobLaunchFailure": Reason("launch_failed", "a node could not start it (prolog, home folder, user)", AGAIN),
    "PartitionTimeLimit": Reason(
        "partition_time",
        "its time limit is more than its partition allows",
        "sinfo -o '%P %l' -p {partition}",
        TIME | PARTITION,
    ),
    "PartitionNodeLimit": Reason(
        "partition_nodes",
        "it asks for another number of nodes than its partition allows",
        "scontrol show partition {partition}",
        NODES | PARTITION,
    ),
    "PartitionDown": PARTITION_DOWN,
    "PartitionInactive": PARTITION_DOWN,
    "ReqNodeNotAvail": UNAVAILABLE,
    "Nodes required for job are DOWN": UNAVAILABLE,
    "NodeDown": UNAVAILABLE,
    "Reservation": Reason("reservation", "its reservation has not begun", "scontrol show reservation"),
    "ReservationDeleted": Reason("reservation_gone", "its reservation is gone", f"{AGAIN} slurm.reservation=null"),
    "Licenses": Reason("licenses", "licenses that it asks for are in use", "scontrol show licenses"),
    "BadConstraints": Reason(
        "constraints",
        "no node has what it asks for: it never starts as it is",
        "sinfo -o '%P %D %c %m %G %f'",
        PARTITION,
    ),
    "AccountNotAllowed": Reason("account", "its partition does not take its account", ACCOUNTS, PARTITION),
    "InvalidAccount": Reason("account", "Slurm does not know its account", ACCOUNTS),
    "InvalidQOS": Reason("qos", "Slurm does not know its QOS", QOS),
    "QOSNotAllowed": Reason("qos", "its partition or account does not take its QOS", ACCOUNTS, PARTITION),
    "QOSUsageThreshold": Reason("qos_usage", "its QOS has been used beyond its threshold", QOS),
    "JobArrayTaskLimit": Reason(
        "parallel", "as many trials run as --parallel allows", "scontrol update JobId={array} ArrayTaskThrottle=0"
    ),
    "DeadLine": Reason("deadline", "it cannot end before its deadline", AGAIN),
    "Prolog": Reason("prolog", "its nodes are being made ready (the site's prolog)"),
    "Cleaning": Reason("cleaning", "what its last start left is being cleared away"),
    "FedJobLock": Reason("federation", "another cluster of the federation is about to start it"),
    "MaxMemPerLimit": Reason("memory", "slurm.mem is more than the cluster allows", "sinfo -o '%P %m'"),
    "BurstBuffer": Reason(
        "burst_buffer", "the burst buffer has no room yet, or takes its data in", "scontrol show burst"
    ),
    "SystemFailure": Reason("slurm_failure", "Slurm, its file system or the network failed", AGAIN),
}
"""By the beginning of what Slurm says. In commands {job} is the job's id, {array} its array's, {run} the run."""

_LIMIT = re.compile(
    r"(?P<of>QOS|Association|Assoc|)(?P<which>Grp|Max|Min|)(?P<what>[A-Z][A-Za-z]*?)(?P<unit>RunMinutes|Minutes|)"
    r"(?P<per>PerUser|PerAccount|PerJob|PerNode|PerCPU|)(?:Limit|NotSatisfied|)"
)
_WHOSE = {"QOS": "its QOS", "Assoc": "its account", "Association": "its account", "": "the cluster"}
_WHAT = {
    **dict.fromkeys(("Cpu", "CPU", "CPUs"), "cores"),
    "GRES": "GPUs",
    "Node": "nodes",
    **dict.fromkeys(("Mem", "Memory"), "memory"),
    **dict.fromkeys(("Jobs", "Job"), "running jobs"),
    **dict.fromkeys(("SubmitJobs", "SubmitJob"), "jobs in the queue"),
    **dict.fromkeys(("Wall", "WallDuration", "Time"), "time"),
    "License": "licenses",
    "Billing": "billing units",
    "Energy": "energy",
    "BB": "burst buffer",
    **dict.fromkeys(("Resource", "Unknown"), "resources"),
}
SHRINK = ("cores", "GPUs", "nodes", "memory", "billing units")
"""Of what fewer nodes have less."""
_PER = {
    "PerUser": " for one user",
    "PerAccount": " for one account",
    "PerJob": " for one job",
    "PerNode": " on one node",
    "PerCPU": " for one core",
    "": "",
}
_OVER_MINUTES = {"Minutes": " over time", "RunMinutes": " times the minutes that jobs may still run", "": ""}


def read(told: str) -> Reason:
    """What Slurm's reason means; one that is not known is told as it is."""
    plain = told.replace("_", " ")
    if begin := max((key for key in REASONS if plain.startswith(key)), key=len, default=None):
        return REASONS[begin]
    return _limit(told.partition(",")[0]) or Reason("other", f"Slurm says: {told}", "scontrol show job {job}")


def _limit(told: str) -> Reason | None:
    """Of the names that are made of whose limit it is, on what, and for whom, as QOSMaxGRESPerUser."""
    found = _LIMIT.fullmatch(told)
    if not found or not (what := _WHAT.get(found["what"])):
        return None
    limit = f"{_WHOSE[found['of']]} limits {what}{_OVER_MINUTES[found['unit']]}{_PER[found['per']]}"
    if found["which"] == "Min":
        then = f"{_WHOSE[found['of']]} asks for more {what} than the job does: it never starts as it is"
    elif found["per"] in ("PerJob", "PerNode", "PerCPU"):
        then = f"{limit}, and the job asks for more: it never starts as it is"
    else:
        then = f"{limit}, and what runs already leaves too little of that"
    name = {"QOS": "qos_limit", "": "cluster_limit"}.get(found["of"], "account_limit")
    moves = frozenset() if found["which"] == "Min" else _moves(what, found["unit"])
    return Reason(name, then, QOS if found["of"] == "QOS" else ACCOUNTS, moves)


def _moves(what: str, unit: str) -> frozenset[Move]:
    """What takes a job out of a limit: less of what it limits. What is used up over time comes back with time alone."""
    if unit == "Minutes":
        return frozenset()
    if what == "time":
        return TIME
    return (NODES if what in SHRINK else frozenset()) | (TIME if unit == "RunMinutes" else frozenset())
