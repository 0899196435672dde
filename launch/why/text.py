"""What `launch why` prints: five lines for the first cause, one for each other."""

from __future__ import annotations

from collections.abc import Sequence

from launch.why.cause import Cause
from launch.why.facts import Facts
from launch.why.find import figures

EVIDENCE_LINES = 2
"""Of the first cause; --json has all."""


def lines(facts: Facts, causes: Sequence[Cause]) -> list[str]:
    """Of a run."""
    name = facts.row["name"]
    if not causes:
        return [f"{name}: {facts.state}, and nothing is wrong by its figures", *labelled("", figures_line(facts))]
    first, *others = causes
    return [
        f"{name}: {_how(facts, first)}",
        *labelled("why", first.said),
        *labelled("evidence", *first.evidence[:EVIDENCE_LINES]),
        *labelled("do", first.command or first.advice),
        *(line for cause in others for line in labelled("also", _short(cause))),
    ]


def labelled(label: str, *texts: str) -> list[str]:
    return [f"  {label if number == 0 else '':9} {text}" for number, text in enumerate(texts) if text]


def figures_line(facts: Facts) -> str:
    return ", ".join(figures(facts))


def _how(facts: Facts, cause: Cause) -> str:
    row = facts.row
    at = f" at step {row['step']:.0f}" if row["step"] else ""
    of = f" of {row['total_steps']:.0f}" if at and row["total_steps"] else ""
    job = f", job {row['job_id']}" if row["job_id"] else ""
    if cause.kind == "failed" and facts.state == "stopped":
        state = "stopped"
    else:
        state = cause.kind if cause.kind in ("waiting", "failed") else f"{facts.state}, {cause.kind}"
    return f"{state}{at}{of}{job}"


def _short(cause: Cause) -> str:
    return f"{cause.kind}: {cause.said}{f' -> {cause.command}' if cause.command else ''}"
