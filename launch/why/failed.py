"""Why a run failed: the first cause, not the last line."""

from __future__ import annotations

from launch.why.cause import Cause
from launch.why.facts import Facts


def find(facts: Facts) -> list[Cause]:
    row = facts.row
    if row["state"] != "failed":
        return []
    said = str(row["reason"] or "it did not say how").partition("\n")[0]
    return [Cause("failed", row["failure"] or "crash", said, (), f"launch retry {facts.typed}", 1.0)]
