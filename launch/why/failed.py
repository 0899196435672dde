"""Why a run failed: the first cause, not the last line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.runs.state import GRACE_SECONDS
from launch.why import mends
from launch.why.cause import Cause
from launch.why.facts import Facts, Text
from launch.why.signs import Found, first_sign
from recipes.text import format_duration
from resnet.rundir.files import number
from slurm.queue import FAILURES

MOST_SHOWN = 300
"""Characters of a line of evidence."""
CONSEQUENCES = (None, "peer", "nccl", "hang", "killed", "crash", "slurm", "gone", "budget", "node", "device")
"""Classes of failure that may follow from another, which a log tells."""
FOLLOWS = ("nccl", "hang", "peer", "killed", "slurm")
"""Those that a rank may tell of as its own, though it began outside of it."""
_LED_TO = re.compile(r"During handling of the above|The above exception was the direct cause")
EXITED = ": exited with exit code"
TOLD_BY_REASON = ("mistake", "oom", "data", "disk")
"""Those that only their own reason tells more of: a log may hold errors that did no harm."""


def find(facts: Facts) -> list[Cause]:
    row = facts.row
    if row["state"] == "damaged":
        return [_damaged(facts)]
    if row["state"] == "running" and facts.row["slurm_state"] in (None, "RUNNING") and _is_silent(row):
        return [_silent(facts)]
    if row["state"] == "stopped" and row["over"]:
        return [_stopped(facts)] if facts.now - (row["updated"] or 0) > GRACE_SECONDS or row["failure"] else []
    # In the first minute a run whose job has failed may still be queued by its own word.
    failed = row["state"] == "failed" or (row["state"] == "queued" and row["slurm_state"] in FAILURES)
    return [_failed(facts)] if failed else []


def _failed(facts: Facts) -> Cause:
    kind = facts.row["failure"]
    found = first_sign(_texts(facts, kind))
    if found and kind == "budget" and _all_walltime(facts):
        found = None
    if found:
        return _of_sign(facts, found)
    return CLASSES.get(kind or "crash", _crash)(facts)


def _texts(facts: Facts, kind: str | None) -> list[Text]:
    """What is searched for a sign, the most telling first."""
    reason = Text("status.json", str(facts.row["reason"] or "").split("\n"))
    # Of a rank that ended by itself, with the code of a mistake, and not by the program.
    by_code = EXITED in reason.lines[0]
    if kind in TOLD_BY_REASON and not by_code:
        return [reason]
    if kind not in CONSEQUENCES and not by_code:
        return []
    record = facts.first_record
    first = [Text(f"logs/failure-{record['rank']}.json", [record["reason"]])] if record else []
    if record and record.get("own_fault") and not _may_follow(record):
        return [*first, *_last_traceback(facts, record["rank"])]
    told = [Text("slurm/attempts.jsonl", str(one.get("reason") or "").split("\n")) for one in facts.attempts[-1:]]
    return [*first, reason, *facts.batch_texts, *told, *facts.log_texts]


def _may_follow(record: dict[str, Any]) -> bool:
    """Whether a rank may have failed by something else than the error that it tells of."""
    return record.get("failure") in FOLLOWS or "worker" in record["reason"]


def _last_traceback(facts: Facts, rank: int) -> list[Text]:
    """What the log of a rank has of the exception that ended it, and of those that led to it."""
    log = next((text for text in facts.log_texts if Path(text.place).name == f"rank-{rank}.log"), None)
    begins = [number for number, line in enumerate(log.lines if log else []) if line.startswith("Traceback (most")]
    if not log or not begins:
        return []
    # Those before it did no harm.
    first = begins.pop()
    while begins and _LED_TO.match(log.lines[first - 1]):
        first = begins.pop()
    return [Text(log.place, [line for line in log.lines[first:] if not line.startswith("  ")])]


def _of_sign(facts: Facts, found: Found) -> Cause:
    sign = found.sign
    evidence = (f"{_cut(found.line)} ({found.place})", *_where(facts))
    said, command = _cut(sign.said.format(found.what)), sign.mend(facts, found.line)
    return Cause("failed", sign.name, said, tuple(dict.fromkeys(evidence))[:3], command, 1.0)


def _where(facts: Facts) -> list[str]:
    """Which rank failed first, and where; how the job ended by Slurm's word."""
    record, row = facts.first_record, facts.row
    lines = []
    if record:
        lines = [f"first: rank {record['rank']} on {record['host']}, after step {record['step']} (logs/failure-*.json)"]
    reason = _first_line(row["reason"])
    if not record and reason:
        lines = [f"{_cut(reason)} (status.json)"]
    if len(facts.attempts) > 1:
        lines += [f"attempt {facts.attempts[-1]['attempt']}; before it: {_endings(facts)} (slurm/attempts.jsonl)"]
    return lines


def _endings(facts: Facts) -> str:
    """How the attempts before the last ended, in few words."""
    causes = [str(one.get("cause") or one.get("outcome") or "no word") for one in facts.attempts[:-1]]
    return ", ".join(f"{causes.count(cause)} x {cause}" for cause in dict.fromkeys(causes))


def _first_line(text: Any) -> str:
    return str(text or "").partition("\n")[0]


def _cut(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 2]}.."


def _cause(facts: Facts, name: str, said: str, command: str, *evidence: str) -> Cause:
    """evidence: goes before what is known of every failure."""
    lines = [
        line for line in (*filter(None, evidence), *_where(facts)) if (line.rpartition(" (")[0] or line) not in said
    ]
    return Cause("failed", name, _cut(said), tuple(_cut(line) for line in lines)[:3], command, 1.0)


def _reason(facts: Facts) -> str:
    """What the run says, without where it happened, which the evidence has."""
    record = facts.first_record
    return _first_line(record["reason"] if record else facts.row["reason"])


def _nan(facts: Facts) -> Cause:
    lr = facts.recipe.optimizer.lr if facts.recipe else None
    clips = facts.recipe is not None and facts.recipe.grad_clip_norm is not None
    changes = [f"optimizer.lr={lr / 2:.3g}"] if lr and clips else ["grad_clip_norm=1"]
    before = [line for line in facts.metrics if number(line.get("train/loss")) is not None]
    last = before[-1] if before else {}
    told = ", ".join(f"{key} {last[key]:.4g}" for key in ("train/loss", "grad_norm", "lr") if number(last.get(key)))
    seen = f"the last good line: step {last.get('step')}, {told} (metrics.jsonl)" if told else ""
    return _cause(facts, "nan", _reason(facts), mends.changed(facts, *changes), seen)


def _data(facts: Facts) -> Cause:
    reason = _reason(facts)
    if "staging failed" in reason:
        log = next((text for text in facts.log_texts if "stage-" in text.place and text.lines), None)
        last = f"{log.lines[-1]} ({log.place})" if log else ""
        return _cause(facts, "staging", f"slurm.stage could not bring the data: {reason}", mends.retry(facts), last)
    return _cause(facts, "broken_images", reason, mends.check_data(facts))


def _peer(facts: Facts) -> Cause:
    said = f"ranks lost another one, which left no word of itself: {_reason(facts)}"
    return _cause(facts, "lost_rank", said, mends.elsewhere(facts), *_srun(facts))


def _killed(facts: Facts) -> Cause:
    if facts.job is None:
        said = "its process was killed from outside: kill -9, the machine's end, or want of memory (dmesg tells)"
        return _cause(facts, "killed", said, mends.retry(facts))
    return _cause(facts, "killed", _reason(facts), mends.elsewhere(facts), *_srun(facts))


def _srun(facts: Facts) -> list[str]:
    """What srun said first of a rank or a node."""
    pattern = re.compile(r"srun: error: \S+: tasks? |Node failure")
    lines = [(line, text.place) for text in facts.batch_texts for line in text.lines if pattern.search(line)]
    return [f"{line} ({place})" for line, place in lines[:1]]


def _hang(facts: Facts) -> Cause:
    said = _reason(facts)
    stack = next((f"{line} ({text.place})" for text in facts.log_texts for line in text.lines if _is_frame(line)), "")
    return _cause(facts, "hang", said, mends.elsewhere(facts), stack)


def _is_frame(line: str) -> bool:
    return bool(re.match(r'\s*File "[^"]*", line \d+ in (?!wait\b|_?run\b|_bootstrap|_watch|__?\w*sleep)', line))


def _of_device(name: str) -> Callable[[Facts], Cause]:
    return lambda facts: _cause(facts, name, _reason(facts), mends.elsewhere(facts))


def _plugin(facts: Facts) -> Cause:
    return _cause(facts, "plugin", _reason(facts), mends.changed(facts))


def _lease(facts: Facts) -> Cause:
    said = f"another process trains the same run, and goes on: {_reason(facts)}"
    return _cause(facts, "lease", said, f"launch status {facts.typed}")


def _mistake(facts: Facts) -> Cause:
    return _cause(facts, "mistake", _reason(facts), mends.changed(facts))


def _timeout(facts: Facts) -> Cause:
    lead = facts.job.profile.get("signal_lead", 120) if facts.job else 120
    said = f"its time limit came before it had saved and ended: slurm.signal_lead={lead} s is too short for that"
    return _cause(facts, "time_limit", said, mends.retry(facts, f"slurm.signal_lead={2 * lead}"))


def _node(facts: Facts) -> Cause:
    nodes = ", ".join(dict.fromkeys(one["node"] for one in facts.attempts if one.get("node")))
    said = f"a node failed{f': {nodes}' if nodes else ''}, and Slurm did not start the job again"
    return _cause(facts, "node", said, mends.elsewhere(facts), *_srun(facts))


def _preempted(facts: Facts) -> Cause:
    said = "it was preempted by a job of higher priority, and Slurm did not start it again (PreemptMode=CANCEL)"
    return _cause(facts, "preempted", said, mends.retry(facts))


def _all_walltime(facts: Facts) -> bool:
    """Whether the attempts that reached no new checkpoint ended at their time limit."""
    last = facts.attempts[-2:]
    return bool(last) and all(attempt.get("cause") == "walltime" for attempt in last)


def _budget(facts: Facts) -> Cause:
    reason = _first_line(facts.row["reason"])
    limit = facts.job.profile.get("time", "") if facts.job else ""
    if _all_walltime(facts):
        starts = [sum(one["seconds"].values()) for one in facts.stages.values()]
        took = f"a start took {format_duration(max(starts))} of it (logs/attempt-*/stages.json)" if starts else ""
        said = f"its time limit, slurm.time={limit}, is too short to start, train up to a checkpoint and save it"
        return _cause(facts, "walltime", said, mends.retry(facts, mends.longer(facts)), reason, took)
    if reason.startswith("started "):
        cause = f"it was {reason}: {_endings(facts)}"
        return _cause(facts, "max_requeues", cause, mends.retry(facts))
    last = facts.attempts[-1] if facts.attempts else {}
    said = f"{reason.partition(': not tried')[0]}; the last one: {_first_line(last.get('reason')) or 'without a word'}"
    return _cause(facts, "no_progress", said, mends.elsewhere(facts))


def _user(facts: Facts) -> Cause:
    return _cause(facts, "cancelled", "its job was cancelled by a user (scancel)", mends.retry(facts))


def _slurm(facts: Facts) -> Cause:
    said = "the job could not reach Slurm's controller, which starts its steps"
    return _cause(facts, "controller", said, mends.retry(facts), _first_line(facts.row["reason"]))


def _gone(facts: Facts) -> Cause:
    said = f"Slurm knows nothing more of its job {facts.row['job_id']}, which left no word of its end"
    return _cause(facts, "gone", said, mends.retry(facts))


def _crash(facts: Facts) -> Cause:
    """An exception, or an end that nobody has told of."""
    if not facts.attempts and facts.job and not any(text.lines for text in facts.batch_texts):
        folder = facts.run_dir / "slurm"
        said = f"its batch script left no line: the node cannot write to {folder} (not shared, or no such user there)"
        return _cause(facts, "not_shared", said, mends.doctor(facts))
    if not facts.attempts and facts.job:
        last = next((f"{text.lines[-1]} ({text.place})" for text in facts.batch_texts if text.lines), "")
        return _cause(
            facts, "batch_script", "its batch script ended before it started the ranks", mends.retry(facts), last
        )
    log = next((text for text in facts.log_texts if text.lines), None)
    told = next(
        (line for line in reversed(log.lines if log else []) if re.match(r"\w+(\.\w+)*(Error|Exception)\b", line)), ""
    )
    return _cause(facts, "crash", _reason(facts), mends.retry(facts), f"{told} ({log.place})" if log and told else "")


CLASSES: dict[str, Callable[[Facts], Cause]] = {
    "nan": _nan,
    "data": _data,
    "peer": _peer,
    "nccl": _of_device("nccl"),
    "killed": _killed,
    "hang": _hang,
    "device": _of_device("gpu_fault"),
    "sdc": _of_device("sdc"),
    "plugin": _plugin,
    "lease": _lease,
    "mistake": _mistake,
    "timeout": _timeout,
    "node": _node,
    "preempted": _preempted,
    "budget": _budget,
    "user": _user,
    "slurm": _slurm,
    "gone": _gone,
    "crash": _crash,
}
"""By the class of a failure, where no sign tells more."""


def _damaged(facts: Facts) -> Cause:
    said = f"its status cannot be read: {_first_line(facts.row['reason'])}"
    return Cause("failed", "damaged", _cut(said), (f"{facts.run_dir}/status.json",), mends.retry(facts), 1.0)


def _is_silent(row: dict[str, Any]) -> bool:
    return str(row["reason"] or "").startswith("no sign of life")


def _silent(facts: Facts) -> Cause:
    said = f"{facts.row['reason']}: its trainer hangs, or its machine is gone"
    command = f"launch cancel --now {facts.typed} && {mends.retry(facts)}"
    return Cause("failed", "silent", said, ("lease.json is not renewed, which happens every 10 s",), command, 1.0)


def _stopped(facts: Facts) -> Cause:
    reason = _first_line(facts.row["reason"])
    if facts.row["failure"] == "user" or reason == "cancelled":
        return _cause(facts, "cancelled", "its user cancelled it", mends.retry(facts))
    if "not requeued" in reason:
        return _cause(
            facts, "not_requeued", f"it was stopped, and Slurm did not take it back: {reason}", mends.retry(facts)
        )
    return _cause(
        facts, "stopped", f"it was told to stop and saved: {reason or 'no reason is noted'}", mends.retry(facts)
    )
