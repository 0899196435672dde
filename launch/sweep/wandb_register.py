"""`launch sweep --wandb-sweep`: a sweep's page at W&B, on which its trials appear."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from launch.sweep.sweep_types import Sweep
from launch.sweep.wandb_write import to_wandb
from recipes.schema.training import Wandb

REGISTER_SECONDS = 60


def register(sweep: Sweep, settings: Wandb) -> dict[str, str | None]:
    """Make the sweep known to W&B; returns its id and the address of its page.

    W&B's agents get nothing to do by it: what is tried, and when, stays with `launch`.
    Raises ValueError, with W&B's own words, where there is no key or the server does not answer.
    """
    if "disabled" in (settings.mode, os.environ.get("WANDB_MODE")):
        raise ValueError("--wandb-sweep: W&B is disabled (wandb.mode, WANDB_MODE)")
    request = {"sweep": to_wandb(sweep), "project": settings.project, "entity": settings.entity}
    try:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("wandb_process.py"))],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=REGISTER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"--wandb-sweep: W&B did not answer within {REGISTER_SECONDS} s") from None
    made = re.search(r"^id (\S+)$", done.stdout, re.MULTILINE)
    if done.returncode or made is None:
        said = [re.sub(r"^(\w+\.)+\w+: ", "", line) for line in done.stderr.splitlines() if line.strip()]
        raise ValueError(f"--wandb-sweep: W&B created no sweep: {said[-1] if said else f'exit code {done.returncode}'}")
    page = re.search(r"^Sweep URL: (\S+)$", done.stdout, re.MULTILINE)
    return {"id": made[1], "url": page[1] if page else None}
