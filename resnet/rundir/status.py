"""status.json: how a run is, as it says itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from resnet.rundir.files import read_json, to_json, write_atomic

FORMAT = 1
NAME = "status.json"


def write_status(run_dir: Path, **fields: Any) -> None:
    """Update fields of status.json; the others stay. Raises ValueError where the file is damaged.

    Fields: name, state (queued, running, finished, failed or stopped), step, total_steps, epoch, epochs, best, top1,
    loss, images_per_second, eta_s, attempts, failure, reason, last_checkpoint_time, wandb_url, pid, host, ...
    `format`, `updated` (unix time) and, where the steps are known, `percent` are filled in.
    """
    write_atomic(run_dir / NAME, status_text(read_status(run_dir) | fields))


def status_text(fields: dict[str, Any]) -> str:
    """The content of status.json."""
    status = {"format": FORMAT, **fields, "updated": time.time()}
    if status.get("total_steps") and status.get("step") is not None:
        status["percent"] = round(100 * status["step"] / status["total_steps"], 2)
    return to_json(status, indent=1) + "\n"


def read_status(run_dir: Path) -> dict[str, Any]:
    """The fields of status.json; empty where there is none. Raises ValueError where it is damaged."""
    return read_json(run_dir / NAME)


def status_or_nothing(run_dir: Path) -> dict[str, Any]:
    """The fields of status.json; empty where it cannot be read, for whatever reason."""
    try:
        return read_status(run_dir)
    except (ValueError, OSError):
        return {}
