"""What a run's files say together of each of its attempts. Only the standard library."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resnet.process.ledger import KINDS
from resnet.rundir.attempts import read_attempts
from resnet.rundir.files import number
from resnet.rundir.provenance import read_provenance
from resnet.rundir.stages import AT_START, read_stages
from resnet.rundir.status import status_or_nothing


class Ledger(NamedTuple):
    """What an attempt's process says of its time."""

    started: float | None = None
    """Unix time."""
    step: int | None = None
    """The newest that it has told of."""
    spent: dict[str, float] = {}
    """Seconds by kind, as far as it came to write it."""
    kept_step: int | None = None
    """Step of its newest checkpoint, its first step where it has none; None: not told, as by earlier versions."""
    kept: dict[str, float] = {}
    """By kind what was spent until then."""
    ended: bool = False
    """Whether that is all, and it came to its end by itself."""


class Record(NamedTuple):
    """An attempt."""

    number: int
    job_id: str | None
    begin: float
    """Unix time, as `end`."""
    end: float | None
    """None: not known, or it goes on."""
    submitted: float | None
    """When its job was sent."""
    in_place: bool
    """Whether its job had made another attempt before, without going back to the queue."""
    ranks: int | None
    first_step: int
    reached: int
    """The last step that is known of."""
    own: bool
    """Whether its trainer came to write."""
    ledger: Ledger


def records_of(run_dir: Path) -> list[Record]:
    """The attempts, in order: those under Slurm by its batch scripts, with what their trainers say; and the others."""
    by_slurm = [one for one in read_attempts(run_dir) if _is_begun(one) and number(one.get("attempt")) is not None]
    own: list[dict[str, Any]] = []
    with contextlib.suppress(ValueError, OSError):
        listed = read_provenance(run_dir).get("attempts")
        own = [one for one in listed if _is_begun(one)] if isinstance(listed, list) else []
    found: list[tuple[float, Record]] = []
    taken = set()
    for attempt in by_slurm:
        match = _own_word(attempt, by_slurm, own)
        taken.add(match)
        found.append((attempt["start"], _record(run_dir, attempt, {} if match is None else own[match])))
    for index, one in enumerate(own):
        if index not in taken:
            found.append((one["start"], _record(run_dir, {}, {"attempt": index + 1} | one)))
    # Not by their processes' begin: one that trains twice is as old as its first training.
    records = [record for _, record in sorted(found, key=lambda pair: pair[0])]
    return [*records[:-1], *(_newest(run_dir, record) for record in records[-1:])]


def _newest(run_dir: Path, record: Record) -> Record:
    """The newest, of which status.json tells how far it has come, where its trainer came to write at all."""
    step = _whole(status_or_nothing(run_dir).get("step")) if record.own else None
    return record if step is None else record._replace(reached=max(record.reached, step))


def _is_begun(attempt: Any) -> bool:
    return isinstance(attempt, dict) and number(attempt.get("start")) is not None


def _own_word(
    attempt: Mapping[str, Any], by_slurm: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]
) -> int | None:
    """Which of the trainers' records is of an attempt that a batch script began."""
    low = attempt["start"]
    high = min((other["start"] for other in by_slurm if other["start"] > low), default=math.inf)
    for index, one in enumerate(own):
        # Outside of Slurm attempts may have the same numbers.
        if one.get("job_id") is None:
            continue
        # Earlier versions gave them none.
        if one.get("attempt") == attempt["attempt"] or ("attempt" not in one and low <= one["start"] < high):
            return index
    return None


def _record(run_dir: Path, attempt: Mapping[str, Any], own: Mapping[str, Any]) -> Record:
    """attempt: by the batch script, empty outside of Slurm; own: by the trainer, empty where it did not come so far."""
    of = _whole(attempt.get("attempt")) or _whole(own.get("attempt")) or 0
    first = _whole(own.get("first_step", attempt.get("step"))) or 0
    ledger = _ledger(read_stages(run_dir, of), first) if own else Ledger()
    # What a batch script saw may be of the attempt before, where the trainer did not come to write.
    steps = [own.get("step"), ledger.step, attempt.get("reached") if own else None]
    begin = number(attempt.get("start"))
    if begin is None:
        begin = min(own["start"], ledger.started or own["start"])
    # Under Slurm the trainer that follows cannot know when one was killed.
    ends = [number(one) for one in (attempt.get("end"), attempt.get("seen"), own.get("end"))]
    return Record(
        number=of,
        job_id=attempt.get("job_id"),
        begin=begin,
        end=next((end for end in ends if end is not None), None),
        submitted=number(attempt.get("submitted")),
        in_place=bool(attempt.get("in_place")),
        ranks=_whole(own.get("world_size")) or _whole(attempt.get("ranks")),
        first_step=first,
        reached=max([first, *(_whole(step) or 0 for step in steps)]),
        own=bool(own),
        ledger=ledger._replace(started=ledger.started or number(own.get("start")) or begin),
    )


def _ledger(stages: Mapping[str, Any], first_step: int) -> Ledger:
    taken, kept, ended = stages.get("seconds", {}), stages.get("kept"), stages.get("ended") is True
    started, step = number(stages.get("started")), _whole(stages.get("step"))
    if not isinstance(stages.get("spent"), dict):
        # Earlier versions count evaluations and saves as training.
        spent = {"start": sum(taken.get(stage, 0.0) for stage in AT_START), "train": taken.get("steps", 0.0)}
        spent |= {"save": taken.get("save", 0.0), "other": taken.get("end", 0.0)}
        return Ledger(started, step, spent, ended="end" in taken) if "step" in taken else Ledger(started)
    spent = _seconds(stages["spent"])
    if not isinstance(kept, dict) or (kept_step := _whole(kept.get("step"))) is None:
        # Without a checkpoint nothing is left of it.
        return Ledger(started, step, spent, first_step, {"start": spent["start"]}, ended)
    return Ledger(started, step, spent, max(first_step, kept_step), _seconds(kept.get("spent")), ended)


def _seconds(values: Any) -> dict[str, float]:
    told = values if isinstance(values, dict) else {}
    return {kind: max(0.0, number(told.get(kind)) or 0.0) for kind in KINDS}


def _whole(value: Any) -> int | None:
    found = number(value)
    return None if found is None else int(found)
