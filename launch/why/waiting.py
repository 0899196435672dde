"""Why a run waits in Slurm's queue."""

from __future__ import annotations

from launch.why.cause import Cause
from launch.why.facts import Facts


def find(facts: Facts) -> list[Cause]:
    row = facts.row
    if row["state"] != "queued" or not row["job_id"]:
        return []
    return [Cause("waiting", "queue", f"Slurm says: {row['reason'] or 'nothing yet'}", (), "", 1.0)]
