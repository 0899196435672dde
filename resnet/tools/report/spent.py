"""Where a run's time went, as one bar with its legend."""

from __future__ import annotations

from html import escape
from pathlib import Path

from recipes.text import format_duration, plural
from resnet.rundir.spent import KINDS, Spent, hours, share, spent
from resnet.rundir.state import has_ended

_TONES = {"wait": 7, "idle": 9, "start": 4, "train": 0, "evaluate": 5, "save": 3, "lost": 1, "other": 8}
"""Of each kind, among the colours of the charts."""


def spent_bar(run_dir: Path, state: str | None) -> str:
    """The bar as HTML; empty for a run of which nothing is known. state: the run's own.

    Of one that is silent it ends with the last sign of life.
    """
    found = spent(run_dir, state if state in ("running", "queued") and not has_ended(run_dir) else None)
    if found is None or found.end <= found.begin:
        return ""
    told = {kind: seconds for kind, seconds in found.seconds.items() if seconds >= 0.5}
    parts = "".join(
        f'<i style="flex-grow:{seconds / (found.end - found.begin):.6f};background:var(--tone-{_TONES[kind]})" '
        f'title="{escape(_told(kind, seconds, found))}"></i>'
        for kind, seconds in told.items()
    )
    legend = "".join(
        f'<span><i style="background:var(--tone-{_TONES[kind]})"></i>{escape(_told(kind, seconds, found))}</span>'
        for kind, seconds in told.items()
    )
    label = escape("; ".join(_told(kind, seconds, found) for kind, seconds in told.items()))
    return (
        f'<div class="spent" role="img" aria-label="{label}">{parts}</div><div class="legend">{legend}</div>'
        f"<p class='soft'>{escape(_cost(found))}</p>"
    )


def _told(kind: str, seconds: float, found: Spent) -> str:
    return f"{KINDS[kind]} {_time(seconds, found)}, {share(seconds, found.end - found.begin)}"


def _time(seconds: float, found: Spent) -> str:
    """In hours, where the whole takes any."""
    return f"{hours(seconds)} h" if found.end - found.begin >= 3600 else format_duration(seconds)


def _cost(found: Spent) -> str:
    whole, lost = found.device_hours, found.lost_hours
    told = f"{_time(found.end - found.begin, found)} since it was first sent or started; {hours(3600 * whole)} "
    told += f"{found.device}-hours"
    if found.seconds["lost"] >= 0.5:
        steps = f" ({plural(found.lost_steps, 'step')})" if found.lost_steps else ""
        told += f", of which {hours(3600 * lost)} ({share(lost, whole)}) were lost{steps}"
    return told
