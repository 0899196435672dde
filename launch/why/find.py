"""All causes of a run, the weightiest first; and what shows that it is well where there are none."""

from __future__ import annotations

import os
import shlex
from importlib import import_module
from typing import Any

from launch.why.cause import Cause, in_order
from launch.why.facts import Facts
from recipes.text import format_duration
from slurm.control import reaching

KINDS = ("waiting", "failed", "slow", "spiked", "wrong")
"""Modules of this package with `find(facts) -> list[Cause]`."""
_SLURMS = ("scontrol", "squeue", "sinfo", "scancel", "sacctmgr", "sprio", "srun")


def causes_of(facts: Facts) -> list[Cause]:
    with reaching(facts.client):
        found = [cause for kind in KINDS for cause in import_module(f"launch.why.{kind}").find(facts)]
    return in_order([cause._replace(command=_reaching(cause.command, facts)) for cause in found])


def _reaching(command: str, facts: Facts) -> str:
    """A command with what lets those of Slurm reach the run's cluster, where the shell that types it does not."""
    variables = {name: value for name, value in facts.client.items() if os.environ.get(name, "") != value}
    if not variables:
        return command
    words = sorted(f"{name}={shlex.quote(value)}" if value else f"-u {name}" for name, value in variables.items())
    parts = command.split(" && ")
    return " && ".join(" ".join(["env", *words, part]) if part.split(" ")[0] in _SLURMS else part for part in parts)


def figures(facts: Facts) -> list[str]:
    """By which a run is well."""
    row = facts.row
    last = next((line for line in reversed(facts.metrics) if "data_wait" in line), {})
    told = {
        "step": _of(row["step"], row["total_steps"]),
        "epoch": _of(row["epoch"], row["epochs"]),
        "img/s": f"{row['images_per_second']:.0f}" if row["images_per_second"] else "",
        "waits for data": f"{last['data_wait']:.0%}" if last.get("data_wait") is not None else "",
        "top-1": f"{row['top1']:.2f}%" if row["top1"] is not None else "",
        "ETA": format_duration(row["eta_s"]) if row["eta_s"] else "",
        "last sign of life": f"{format_duration(facts.now - row['updated'])} ago" if _is_alive(row) else "",
    }
    return [f"{what} {text}" for what, text in told.items() if text]


def _of(value: float | None, whole: float | None) -> str:
    return "" if value is None else f"{value:g}/{whole:g}" if whole else f"{value:g}"


def _is_alive(row: dict[str, Any]) -> bool:
    return bool(row["updated"]) and not row["over"]
