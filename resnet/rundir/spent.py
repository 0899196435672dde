"""Where a run's time went, from its first submission to its end: by its own files. Only the standard library."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resnet.process.ledger import KINDS as ON_DEVICES
from resnet.rundir.attempt_records import Record, records_of
from resnet.rundir.attempts import newest_step
from resnet.rundir.files import number, read_json
from resnet.rundir.lease import read_lease
from resnet.rundir.provenance import read_provenance
from resnet.rundir.status import status_or_nothing

KINDS = {
    "wait": "waiting in the queue",
    "idle": "stopped, until it was sent again",
    "start": "starting, until the first step",
    "train": "training",
    "evaluate": "evaluating",
    "save": "held up by saving",
    "lost": "lost, and made again",
    "other": "leaving",
}
"""What a run's time goes into, with what it is called: after the first two its devices are its own."""


class Attempt(NamedTuple):
    """One start of the ranks, with what came between the one before and it."""

    number: int
    begin: float
    """Unix time, as `end`."""
    end: float
    ranks: int
    wait: float
    """Seconds in the queue before it."""
    idle: float
    seconds: dict[str, float]
    """By kind of `ON_DEVICES`."""
    first_step: int
    steps: int
    """Steps that it made and that were kept."""
    lost_steps: int
    measured: bool
    """Whether its process told evaluations and saves from training."""


class Spent(NamedTuple):
    """The time of a run, each second of one kind."""

    begin: float
    """Unix time, as `end`."""
    end: float
    seconds: dict[str, float]
    """By kind of `KINDS`; together `end - begin`."""
    device_seconds: dict[str, float]
    """By kind of `ON_DEVICES`: times the ranks that the attempt had."""
    attempts: tuple[Attempt, ...]
    queued: float
    """Seconds that it has waited by now, since it was sent or its last attempt ended; 0 where it does not wait."""
    device: str
    """GPU, or rank for a run on CPUs."""

    @property
    def device_hours(self) -> float:
        return sum(self.device_seconds.values()) / 3600

    @property
    def lost_hours(self) -> float:
        """Of devices."""
        return self.device_seconds["lost"] / 3600

    @property
    def lost_steps(self) -> int:
        return sum(attempt.lost_steps for attempt in self.attempts)


def hours(seconds: float) -> str:
    """Hours to three figures, as 0.00125, 2.5 or 1,320."""
    found = seconds / 3600
    return f"{found:,.0f}" if found >= 100 else f"{found:.3g}"


def share(part: float, whole: float) -> str:
    """Per cent, the small ones to a tenth."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.1f}%" if 0 < percent < 9.95 else f"{percent:.0f}%"


def spent(run_dir: Path, state: str | None = None, now: float | None = None) -> Spent | None:
    """Where a run's time went; None for one of which neither a submission nor a start is known.

    state: of a run that goes on, running or queued, by whoever knows; None: it is over. now: unix time.
    """
    now = time.time() if now is None else now
    records, sent = records_of(run_dir), _sent(run_dir)
    if not records and not sent:
        return None
    begin = _begin(records, sent)
    attempts = [*_attempts(run_dir, records, sent, begin, now if state == "running" else None)]
    end = attempts[-1].end if attempts else begin
    # One that is about to start has its end of the attempt before.
    waits = state == "queued" or (state == "running" and bool(records) and records[-1].end is not None)
    idle, wait = _gap(end, now, number(sent.get("submitted"))) if waits else (0.0, 0.0)
    seconds = {
        "wait": wait + sum(attempt.wait for attempt in attempts),
        "idle": idle + sum(attempt.idle for attempt in attempts),
        **{kind: sum(attempt.seconds[kind] for attempt in attempts) for kind in ON_DEVICES},
    }
    on_devices = {kind: sum(one.ranks * one.seconds[kind] for one in attempts) for kind in ON_DEVICES}
    return Spent(begin, end + idle + wait, seconds, on_devices, tuple(attempts), wait, _device(run_dir, sent))


def _attempts(
    run_dir: Path, records: Sequence[Record], sent: Mapping[str, Any], at: float, now: float | None
) -> Iterator[Attempt]:
    """at: when the run was first sent. now: unix time, where the last one may go on."""
    each = _each(sent)
    for index, record in enumerate(records):
        after = records[index + 1 :]
        goes_on = not after and now is not None and record.end is None
        kept = record.reached if goes_on else _kept_step(record, after, run_dir)
        begin = max(at, record.begin)
        end = max(begin, now if goes_on and now is not None else _end(record, after, run_dir))
        seconds = _kinds(record, begin, end, kept, goes_on)
        idle, wait, held = _before(records, index, at, sent)
        seconds["start"] += held
        made, lost = min(record.reached, kept) - record.first_step, record.reached - kept
        ranks, steps = record.ranks or each, (record.first_step, max(0, made), max(0, lost))
        measured = record.ledger.kept_step is not None
        yield Attempt(record.number, begin, end, ranks, wait, idle, seconds, *steps, measured)
        at = end


def _each(sent: Mapping[str, Any]) -> int:
    """Ranks of an attempt that does not tell them."""
    return int(number(sent.get("ranks")) or 1)


def _last_sign(run_dir: Path) -> float:
    """When a run's trainer last gave a sign of life, by what the newest has left."""
    told = status_or_nothing(run_dir)
    # By another state's name it was written since, by who sent it again or cancelled it.
    own = number(told.get("updated")) if told.get("state") == "running" else None
    return max(own or 0.0, number(read_lease(run_dir).get("time")) or 0.0)


def _sent(run_dir: Path) -> dict[str, Any]:
    """What is known of the newest job."""
    with contextlib.suppress(ValueError, OSError):
        return read_json(run_dir / "slurm" / "job.json")
    return {}


def _device(run_dir: Path, sent: Mapping[str, Any]) -> str:
    with contextlib.suppress(ValueError, OSError, AttributeError):
        if devices := read_provenance(run_dir).get("devices"):
            return "rank" if set(devices) == {"CPU"} else "GPU"
    return "GPU" if sent.get("gpus_per_node") else "rank"


def _begin(records: Sequence[Record], sent: Mapping[str, Any]) -> float:
    """When the run was first sent, or else began."""
    if not records:
        return number(sent.get("submitted")) or 0.0
    submitted = _asked(records, 0, sent)
    return min(records[0].begin, submitted) if submitted is not None else records[0].begin


def _asked(records: Sequence[Record], index: int, sent: Mapping[str, Any]) -> float | None:
    """When the job of an attempt was sent."""
    record = records[index]
    if record.submitted is not None or record.job_id is None:
        return record.submitted
    return number(sent.get("submitted")) if sent.get("job_id") == record.job_id else None


def _gap(low: float, high: float, submitted: float | None) -> tuple[float, float]:
    """Seconds between two moments in which nobody had asked for a start, and in which one was waited for."""
    whole = max(0.0, high - low)
    idle = min(whole, max(0.0, submitted - low)) if submitted is not None else 0.0
    return idle, whole - idle


def _before(records: Sequence[Record], index: int, at: float, sent: Mapping[str, Any]) -> tuple[float, float, float]:
    """Seconds before an attempt that it was stopped, that it waited, and that its job had its nodes already.

    at: when the one before ended.
    """
    record, before = records[index], records[index - 1] if index else None
    gap = max(0.0, record.begin - at)
    if record.in_place:
        return 0.0, 0.0, gap
    submitted = _asked(records, index, sent)
    again = before is not None and before.job_id == record.job_id
    if record.job_id is None or (submitted is None and not again):
        return gap, 0.0, 0.0
    return *_gap(at, record.begin, submitted), 0.0


def _end(record: Record, after: Sequence[Record], run_dir: Path) -> float:
    """When an attempt ended that is over."""
    end = record.end
    if end is None:
        told = (record.ledger.started or record.begin) + sum(record.ledger.spent.values())
        end = told if after or record.ledger.ended else max(told, _last_sign(run_dir))
    return min([end, *(later.begin for later in after)])


def _kept_step(record: Record, after: Sequence[Record], run_dir: Path) -> int:
    """The last step of an attempt that is over of which something is left."""
    if after:
        # One may have gone back to an older checkpoint, since a newer one was damaged.
        kept = min(later.first_step for later in after)
    elif record.ledger.kept_step is not None:
        kept = record.ledger.kept_step
    else:
        kept = record.reached if record.ledger.ended else newest_step(run_dir)
    return max(record.first_step, kept)


def _kinds(record: Record, begin: float, end: float, kept_step: int, goes_on: bool) -> dict[str, float]:
    """By kind the seconds from an attempt's begin to its end."""
    whole, ledger = end - begin, record.ledger
    complete = ledger.ended and kept_step >= record.reached
    told = ledger.spent if complete or goes_on else ledger.kept or {"start": ledger.spent.get("start", 0.0)}
    known = {kind: told.get(kind, 0.0) for kind in ON_DEVICES}
    # What came before the process is part of its start.
    known["start"] += max(0.0, min(whole, (ledger.started or begin) - begin))
    if (sum_of_all := sum(known.values())) > whole:
        # By clocks that differ.
        known = {kind: spent * whole / sum_of_all for kind, spent in known.items()}
    for kind, share in _of_rest(record, kept_step, complete, goes_on).items():
        known[kind] += share * max(0.0, whole - sum_of_all)
    if ledger.kept_step is not None and kept_step < ledger.kept_step:
        # The checkpoint was there, and yet a later attempt began before it.
        gone = known["train"] * (ledger.kept_step - kept_step) / (ledger.kept_step - record.first_step)
        known["train"] -= gone
        known["lost"] += gone
    return known


def _of_rest(record: Record, kept_step: int, complete: bool, goes_on: bool) -> dict[str, float]:
    """The shares by kind of an attempt's time that it has not told of itself."""
    made = record.reached - record.first_step
    if complete or not made:
        return {"other" if complete else "start": 1.0}
    if goes_on or record.ledger.kept:
        return {"train" if goes_on else "lost": 1.0}
    # Nobody has noted when the checkpoint was taken: by steps.
    share = min(1.0, (kept_step - record.first_step) / made)
    return {"train": share, "lost": 1.0 - share}
