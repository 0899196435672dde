"""All causes of a run, the weightiest first; and what shows that it is well where there are none."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from launch.why.cause import Cause, in_order
from launch.why.facts import Facts
from recipes.text import format_duration

KINDS = ("waiting", "failed", "slow", "spiked", "wrong")
"""Modules of this package with `find(facts) -> list[Cause]`."""


def causes_of(facts: Facts) -> list[Cause]:
    found = [cause for kind in KINDS for cause in import_module(f"launch.why.{kind}").find(facts)]
    return in_order(found)


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
