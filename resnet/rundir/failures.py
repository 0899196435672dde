"""What ranks leave behind when they fail, and which of them began it. Only the standard library."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_failures(folder: Path) -> list[dict[str, Any]]:
    """What ranks left: rank, host (its node), step, reason, failure, time, own_fault, and `since` of a hang."""
    found = []
    for file in folder.glob("failure-*.json"):
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(file.read_bytes()))
    return found


def first_failure(records: Sequence[dict[str, Any]], ranks: int) -> dict[str, Any] | None:
    """That of the rank with which it began, of so many; None where all only lost another.

    Where one hangs all do, waiting for it: it began with the one that could not even write, else with the one that
    moved last the longest ago.
    """
    own = [record for record in records if record["own_fault"]]
    others = [record for record in own if record["failure"] != "hang"]
    if others or not own:
        return min(others, key=lambda record: record["time"], default=None)
    if silent := sorted({*range(ranks)} - {record["rank"] for record in records}):
        reason = f"it is stopped or hangs, and the others wait for it; rank {own[0]['rank']}: {own[0]['reason']}"
        return {**own[0], "rank": silent[0], "host": None, "reason": reason}
    return min(own, key=lambda record: record.get("since", record["time"]))
