"""What a run directory tells of the run's attempts under Slurm. Only the standard library."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from resnet.rundir.files import read_lines

ENDS = {"cancelled": "cancel", "pruned": "pruned"}
"""Why a run is told to save and not to go on (by a user, by a sweep's early stopping), with the file that says so."""


def end_file(run_dir: Path, why: str) -> Path:
    """The file by which an end that is meant is told from a preemption."""
    return run_dir / "slurm" / ENDS[why]


def told_to_end(run_dir: Path) -> str | None:
    """Why a run is to end, if a file says so; None also where that cannot be seen, as for a time over NFS."""
    with contextlib.suppress(OSError):
        return next((why for why in ENDS if end_file(run_dir, why).exists()), None)
    return None


def end_as_told(why: str) -> dict[str, Any]:
    """What status.json says of a run that has ended as it was told to."""
    return {"state": "stopped", "reason": why, "failure": "user" if why == "cancelled" else None, "eta_s": None}


def read_attempts(run_dir: Path) -> list[dict[str, Any]]:
    """The attempts of a run that Slurm started, in order: what is known of the start of each, and of its end."""
    file = run_dir / "slurm" / "attempts.jsonl"
    merged: dict[int, dict[str, Any]] = {}
    for record in read_lines(file):
        with contextlib.suppress(TypeError, KeyError):
            if "end" in record:
                # `step` stays that of the start: what an attempt is compared by.
                record["last_step"] = record.pop("step")
            merged.setdefault(record["attempt"], {}).update(record)
    return [attempt for attempt in merged.values() if "start" in attempt]


def step_of_name(name: str) -> int | None:
    """The step of a checkpoint by its folder's name, as step-00000500; None for another name."""
    found = re.fullmatch(r"step-(\d{8,})", name)
    return int(found[1]) if found else None


def newest_step(run_dir: Path) -> int:
    """The step of the newest checkpoint that was committed; 0 where there is none."""
    manifests = run_dir.glob("checkpoints/step-*/manifest.json")
    return max((step for path in manifests if (step := step_of_name(path.parent.name)) is not None), default=0)
