"""Why a run waits in Slurm's queue, when it would start, and what would start it sooner."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable

from launch.runs.job_record import requests_of
from launch.runs.send import submit_command
from launch.why import reasons
from launch.why.cause import Cause
from launch.why.facts import Facts
from launch.why.sooner import Offer, offers
from recipes.text import format_duration, plural
from slurm.pending import Ahead, ahead_of, show_job
from slurm.queue import FAILURES, Job, queued

WORTH_SECONDS = 120
"""By which another request has to start sooner to be told."""
SENDING_SECONDS = 60
"""For which a run may be queued by its own word before its job is known."""

STAND_STILL = ("held_user", "held_admin", "requeued_held", "launch_failed", "never")
"""Reasons for which a job never starts by itself, whatever start Slurm planned before."""

AT_ITS_NODES = {
    "CONFIGURING": (
        "configuring",
        "it has its nodes, which are being made ready (they boot, or the site's prolog runs)",
    ),
    "SUSPENDED": ("suspended", "it is suspended: another job has taken its nodes for a while"),
    "STOPPED": ("suspended", "it is stopped: its processes keep their nodes and do nothing"),
}
"""By Slurm's state of a job that has nodes and does not train."""


def find(facts: Facts) -> list[Cause]:
    row = facts.row
    if found := AT_ITS_NODES.get(row["slurm_state"]):
        name, said = found
        command = f"scontrol resume {row['job_id']}" if name == "suspended" else ""
        return [Cause("waiting", name, said, (f"job {row['job_id']} is {row['slurm_state']} (squeue)",), command, 1.0)]
    if row["state"] != "queued" or row["slurm_state"] in FAILURES:
        return []
    if not row["job_id"]:
        return [_never_sent(facts)] if _waited(facts) > SENDING_SECONDS else []
    if row["slurm_state"] is None:
        return [_no_answer(facts)]
    return [_queued(facts)]


def _waited(facts: Facts) -> float:
    return facts.now - (facts.row["updated"] or facts.now)


def _never_sent(facts: Facts) -> Cause:
    said = "it was never sent: `launch` ended before Slurm had the job"
    evidence = (f"status.json says queued for {format_duration(_waited(facts))}", "slurm/job.json is not there")
    return Cause("waiting", "never_sent", said, evidence, submit_command(facts.run_dir.absolute()), 1.0)


def _no_answer(facts: Facts) -> Cause:
    trouble = str(facts.row["reason"] or "")
    evidence = (trouble, f"status.json says queued, {format_duration(_waited(facts))} ago")
    said = "what it waits for is not known: Slurm does not answer"
    return Cause("waiting", "no_answer", said, evidence, "sinfo", 1.0)


def _queued(facts: Facts) -> Cause:
    row = facts.row
    job = {"Reason": row["slurm_reason"] or "None"}
    if facts.may_ask:
        with contextlib.suppress(ValueError):
            job |= show_job(row["job_id"])
    reason = reasons.read(job["Reason"])
    ahead = _ahead(facts, job) if reason.moves else None
    start = _time(job, "StartTime")
    expected = start if start and start > facts.now and reason.name not in STAND_STILL else None
    found = _offers(facts, job, ahead, expected, reason.moves) if facts.may_ask else []
    evidence = [_slurms_word(facts, job, ahead), *_more(facts, job, reason), _expectation(facts, job, expected)]
    if found:
        evidence = [evidence[0], "; ".join(offer.words(facts.now) for offer in found[:2]), *evidence[1:]]
    said = f"{_words(reason, ahead)}{_when(facts, expected)}"
    command = found[0].request.command if found else _command(facts, job, reason)
    return Cause("waiting", reason.name, said, tuple(filter(None, evidence))[:3], command, 1.0, reason.advice)


def _time(job: dict[str, str], key: str) -> float | None:
    return float(job[key]) if job.get(key, "").isdigit() else None


def _words(reason: reasons.Reason, ahead: Ahead | None) -> str:
    if reason.name != "priority" or not ahead or ahead.place == 1:
        return reason.words
    others = ahead.place - 1
    return f"{plural(others, 'job')} of higher priority {'is' if others == 1 else 'are'} ahead"


def _when(facts: Facts, expected: float | None) -> str:
    return f"; it is expected to start in {format_duration(expected - facts.now)}" if expected else ""


def _ahead(facts: Facts, job: dict[str, str]) -> Ahead | None:
    if not facts.may_ask or "Partition" not in job:
        return None
    with contextlib.suppress(ValueError):
        same = [one.job_id for one in requests_of(facts.run_dir)]
        return ahead_of(facts.row["job_id"], job["Partition"], int(job.get("Priority", "0")), same)
    return None


def _slurms_word(facts: Facts, job: dict[str, str], ahead: Ahead | None) -> str:
    told = f"reason {job['Reason']}"
    if ahead:
        told += f", place {ahead.place} of {ahead.waiting} by priority in partition {job['Partition']} (squeue)"
    sent = _time(job, "SubmitTime")
    return f"{told}, queued for {format_duration(facts.now - sent)}" if sent else told


def _expectation(facts: Facts, job: dict[str, str], expected: float | None) -> str:
    if not expected:
        return "Slurm has not worked out when it starts" if facts.may_ask else ""
    where = f" on {job['SchedNodeList']}" if "SchedNodeList" in job else ""
    return f"Slurm plans its start in {format_duration(expected - facts.now)}{where} (scontrol show job)"


def _more(facts: Facts, job: dict[str, str], reason: reasons.Reason) -> list[str]:
    """What is known beside of some reasons."""
    return [line for line in [MORE[reason.name](facts, job)] if line] if reason.name in MORE else []


def _after_requeue(facts: Facts, job: dict[str, str]) -> str:
    before = str(facts.status.get("reason") or "").partition("\n")[0]
    begin = _time(job, "EligibleTime")
    free = f"it may start again in {format_duration(begin - facts.now)}" if begin and begin > facts.now else ""
    why = f"it went back to the queue: {before}" if before else ""
    return "; ".join(filter(None, (free, why)))


def _depends_on(facts: Facts, job: dict[str, str]) -> str:
    told = job.get("Dependency", "")
    known: dict[str, Job] = {}
    with contextlib.suppress(ValueError):
        known = (queued() or {}) if facts.may_ask else {}
    others = [f"job {name} ({one.name}) is {one.state}" for name, one in known.items() if f":{name}(" in f"{told}("]
    return "; ".join(filter(None, (f"Dependency={told}" if told else "", *others)))


def _asked_for(facts: Facts, _: dict[str, str]) -> str:
    profile = facts.job.profile if facts.job else {}
    keys = ("constraint", "gpu_type", "gpus_per_node", "cpus_per_rank", "mem", "nodes", "reservation")
    return "it asks for " + ", ".join(f"slurm.{key}={profile[key]}" for key in keys if profile.get(key))


MORE: dict[str, Callable[[Facts, dict[str, str]], str]] = {
    "begin_time": _after_requeue,
    "requeued_held": _after_requeue,
    "dependency": _depends_on,
    "never": _depends_on,
    "constraints": _asked_for,
    "licenses": lambda _, job: f"Licenses={job.get('Licenses', '')}",
    "reservation": lambda _, job: f"Reservation={job.get('Reservation', '')}",
    "reservation_gone": lambda _, job: f"Reservation={job.get('Reservation', '')}",
    "qos_limit": lambda _, job: f"QOS={job.get('QOS', '')}, account={job.get('Account', '')}",
    "account_limit": lambda _, job: f"account={job.get('Account', '')}, QOS={job.get('QOS', '')}",
}
"""By a cause's name: what else Slurm says that explains it."""


def _offers(
    facts: Facts, job: dict[str, str], ahead: Ahead | None, expected: float | None, moves: frozenset[reasons.Move]
) -> list[Offer]:
    """Other requests that start sooner than this one, the soonest first."""
    with contextlib.suppress(ValueError):
        now = facts.now
        found = offers(facts, job, ahead, moves)
        found = [offer for offer in found if not expected or offer.start < expected - WORTH_SECONDS]
        # Of those that start within a minute that which changes the run the least.
        return sorted(found, key=lambda offer: (round(max(0.0, offer.start - now) / 60), offer.cost))
    return []


def _command(facts: Facts, job: dict[str, str], reason: reasons.Reason) -> str:
    job_id = str(facts.row["job_id"])
    partition = shlex.quote(job.get("Partition", ""))
    return reason.command.format(job=job_id, array=job_id.partition("_")[0], run=facts.typed, partition=partition)
