"""The causes of a sweep's trials, counted."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from launch.runs.state import rows
from launch.why.cause import Cause
from launch.why.facts import Facts
from launch.why.find import causes_of
from launch.why.text import labelled
from recipes.text import listed, plural
from resnet.rundir.sweep.results import folders, sweep_so_far


def counted(sweep_dir: Path) -> dict[str, Any]:
    """By the first cause of each trial that has one: how many trials, which, and the cause of the first of them."""
    found = rows(folders(sweep_so_far(sweep_dir)))
    alike: dict[tuple[str, str], list[tuple[str, Cause]]] = defaultdict(list)
    for row in found:
        for cause in causes_of(Facts(Path(row["run_dir"]), row))[:1]:
            alike[cause.kind, cause.name].append((row["name"], cause))
    causes = [
        {"count": len(same), "trials": [name for name, _ in same], **same[0][1]._asdict()}
        for same in sorted(alike.values(), key=len, reverse=True)
    ]
    return {"name": sweep_dir.name, "trials": len(found), "causes": causes}


def sweep_lines(found: dict[str, Any]) -> list[str]:
    """Of `counted`."""
    causes, name = found["causes"], found["name"]
    if not causes:
        return [f"{name}: {plural(found['trials'], 'trial')}, and nothing is wrong by their figures"]
    lines = []
    for kind in dict.fromkeys(cause["kind"] for cause in causes):
        of_kind = [cause for cause in causes if cause["kind"] == kind]
        number = sum(cause["count"] for cause in of_kind)
        told = ", ".join(f"{cause['count']} x {cause['name'].replace('_', ' ')}" for cause in of_kind)
        lines += [f"{name}: {number} of {found['trials']} {kind}: {told}"]
    for cause in causes:
        lines += labelled(f"{cause['count']} x", f"{cause['said']} ({listed(cause['trials'], 3)})")
        lines += labelled("do", cause["command"])
    return lines
