"""logs/attempt-K/stages.json: what rank 0 of an attempt spent its time on. Only the standard library."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

from resnet.process.stages import STAGES, age, seconds
from resnet.rundir.files import number, read_json, to_json, write_atomic

FORMAT = 1
AT_START = tuple(STAGES)[: tuple(STAGES).index("step") + 1]
"""The stages up to the end of the first step."""
_writing = threading.Lock()
"""A checkpoint's thread writes too."""


def stages_file(run_dir: Path, attempt: int) -> Path:
    return run_dir / "logs" / f"attempt-{attempt}" / "stages.json"


def write_stages(run_dir: Path, attempt: int, **facts: Any) -> None:
    """Write what this process spent its time on. A disk that is full is told of elsewhere.

    facts: among them `spent`, the seconds by kind of `resnet.process.ledger`; `kept`, the step of the newest checkpoint
    of this attempt and what was `spent` until then; `ended`, where nothing of it is made again.
    """
    content = {"format": FORMAT, "started": time.time() - age(), "seconds": seconds(), **facts}
    with contextlib.suppress(OSError), _writing:
        file = stages_file(run_dir, attempt)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, to_json(content, indent=1) + "\n")


def read_stages(run_dir: Path, attempt: int) -> dict[str, Any]:
    """`started` (unix time of the process), `seconds` by stage, and facts; empty where there is none to be read."""
    try:
        content = read_json(stages_file(run_dir, attempt))
    except (ValueError, OSError):
        return {}
    found = content.get("seconds")
    told = found.items() if isinstance(found, dict) else ()
    taken = {stage: value for stage, spent in told if (value := number(spent)) is not None and stage in STAGES}
    return {**content, "seconds": taken} if taken else {}


def described(taken: dict[str, float]) -> str:
    """In a line what came before the end of the first step, the longest first; empty where that was not reached."""
    if "step" not in taken:
        return ""
    parts = {STAGES[stage]: taken[stage] for stage in AT_START if taken.get(stage, 0) >= 0.5}
    longest = sorted(parts, key=lambda name: -parts[name])
    whole = sum(taken.get(stage, 0.0) for stage in AT_START)
    told = ", ".join(f"{name} {parts[name]:.1f}" for name in longest)
    return f"first step after {whole:.1f} s{': ' if told else ''}{told}"
