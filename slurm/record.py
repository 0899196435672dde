"""What a batch script writes down of a run: its attempts, and its state. Only the standard library, Python 3.9."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet.rundir.files import append_line, number, write_atomic
from resnet.rundir.lease import read_lease
from resnet.rundir.status import status_or_nothing, status_text, write_status
from slurm.ends import slurms_word


def record(run_dir: Path, attempt: int, **fields: Any) -> None:
    """Add to attempts.jsonl. A disk that is full must not keep the job from going on."""
    try:
        append_line(run_dir / "slurm" / "attempts.jsonl", {"attempt": attempt, **fields})
    except OSError as error:
        print(f"attempts.jsonl could not be written: {error}", file=sys.stderr)


def tell(run_dir: Path, **fields: Any) -> None:
    """Update status.json, a damaged one by a new one."""
    try:
        try:
            write_status(run_dir, **fields)
        except ValueError:
            write_atomic(run_dir / "status.json", status_text({"name": run_dir.name, **fields}))
    except OSError as error:
        print(f"status.json could not be written: {error}", file=sys.stderr)


def reached(run_dir: Path) -> int | None:
    """The last step that the run's log tells of."""
    step = number(status_or_nothing(run_dir).get("step"))
    return None if step is None else int(step)


def note_lost(run_dir: Path, before: Sequence[dict[str, Any]]) -> None:
    """Note when the attempt before was last seen alive, and at which step, where its script was killed too.

    before: the earlier attempts. Later on nothing tells of it: the files that do are this attempt's.
    """
    if before and not {"end", "seen"} & before[-1].keys():
        seen = number(read_lease(run_dir).get("time")) or number(status_or_nothing(run_dir).get("updated"))
        record(run_dir, before[-1]["attempt"], seen=seen, reached=reached(run_dir))


class OwnLog:
    """The log of a batch script, from where this start of it writes on."""

    def __init__(self) -> None:
        self._start = os.fstat(2).st_size

    def written(self) -> int:
        """Its bytes, of all starts of the job: what is found from there on is of what comes now."""
        return os.fstat(2).st_size

    def slurms_word(self) -> str | None:
        """Why Slurm ends the job, as `slurm.ends.slurms_word` has it."""
        try:
            with open("/proc/self/fd/2", encoding="utf-8", errors="replace") as log:
                log.seek(self._start)
                return slurms_word(log.read())
        except OSError:
            return None
