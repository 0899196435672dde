"""The causes of a sweep's trials, counted."""

from __future__ import annotations

import shlex
from collections import defaultdict
from pathlib import Path
from typing import Any

from launch.runs.state import rows
from launch.sweep.halving import is_pruned
from launch.why.cause import Cause
from launch.why.facts import Facts
from launch.why.find import causes_of
from launch.why.text import labelled
from recipes.text import listed, plural
from resnet.rundir.find import ROOT
from resnet.rundir.sweep.results import folders, sweep_so_far


def counted(sweep_dir: Path) -> dict[str, Any]:
    """By the first cause of each trial that has one: how many trials, which, and the cause of the first of them."""
    found = [row for row in rows(folders(sweep_so_far(sweep_dir))) if not is_pruned(Path(row["run_dir"]), row["state"])]
    typed = shlex.quote(sweep_dir.name if sweep_dir.parent == Path(ROOT) else str(sweep_dir))
    alike: dict[tuple[str, str], list[tuple[str, Cause]]] = defaultdict(list)
    for row in found:
        for cause in causes_of(Facts(Path(row["run_dir"]), row))[:1]:
            alike[cause.kind, cause.name].append((row["name"], _for_all(cause, typed)))
    causes = [
        {"count": len(same), "trials": [name for name, _ in same], **same[0][1]._asdict()}
        for same in sorted(alike.values(), key=len, reverse=True)
    ]
    return {"name": sweep_dir.name, "trials": len(found), "causes": causes}


def _for_all(cause: Cause, typed: str) -> Cause:
    """With the command of the sweep: a trial that is sent alone, or anew, would be none of its trials."""
    parts = cause.command.split(" && ")
    first = parts[0]
    verb, *words = shlex.split(parts[-1])[1:] if parts[-1].startswith("launch ") else ("",)
    if verb not in ("retry", "local", "submit"):
        return cause
    if cause.kind != "failed":
        return cause._replace(command="")
    kept = [word for word in words if word.startswith(("slurm.", "--exclude-bad-nodes", "--new-code"))]
    again = shlex.join(["launch", "retry", typed, *(kept if verb == "retry" else [])])
    return cause._replace(command=again if first.startswith("launch ") else f"{first} && {again}")


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
        lines += labelled("do", cause["command"] or "nothing for one trial: change it for the next sweep")
    return lines
