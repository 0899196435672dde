"""`launch clean`: remove what runs leave and nobody needs any more, once its sizes have been shown."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from launch.arguments import add_root
from launch.runs.leftovers import (
    CHECKPOINT,
    CODE,
    ENVIRONMENT,
    FAILED,
    INDEX,
    UNFINISHED,
    Leftover,
    failed_runs,
    given_up,
    old_checkpoints,
    old_copies,
    old_environments,
    old_lists,
    take_away,
    unfinished_files,
)
from launch.runs.state import find, rows
from recipes.text import plural
from resnet.process import exit_codes
from resnet.rundir.find import find_sweep, roots, runs_in, sweeps_in
from slurm.queue import asked_once

MOST_LISTED = 10
"""Of each kind, the largest first."""
KINDS = {
    CODE: "copies of the program that no run needs which is not finished",
    CHECKPOINT: "of finished runs, neither the best nor the last",
    UNFINISHED: "left by processes that were killed while they wrote",
    ENVIRONMENT: "of slurm.stage_environment, while no run is queued or trained",
    INDEX: "of folders that are gone, unused for a month",
    FAILED: "which came to no checkpoint",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="names or directories of runs and sweeps; none: all, and the copies of the code that their jobs ran",
    )
    parser.add_argument("--failed", action="store_true", help="also runs that failed before their first checkpoint")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--dry-run", action="store_true", help="show what would be removed, and its sizes")
    shape.add_argument("--yes", action="store_true", help="do not ask before it is removed")
    add_root(parser)


def run(arguments: argparse.Namespace) -> int:
    with asked_once():
        found = _found(arguments)
    print("\n".join(_listed(found)))
    if not found:
        return exit_codes.FINISHED
    if arguments.dry_run:
        print("nothing was removed (--dry-run)")
        return exit_codes.FINISHED
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise ValueError("nothing was removed: --yes removes what is listed")
        if input("Remove all that? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was removed")
            return exit_codes.FINISHED
    return _remove(found)


def _found(arguments: argparse.Namespace) -> list[Leftover]:
    named = [_named(text, arguments.root) for text in arguments.runs]
    places = [path.resolve() for path in roots(arguments.root) if path.is_dir()]
    if not named and not places:
        raise ValueError(f"no folder {arguments.root}")
    # Also where a single run is named: what the others start from is seen there.
    places = [*dict.fromkeys([*places, *(path.parent for path in named)])]
    sweeps = [sweep for place in places for sweep in sweeps_in(place)]
    places = [*dict.fromkeys([*places, *sweeps])]
    runs = [run for place in places for run in runs_in(place)]
    every = rows(dict.fromkeys(runs))
    if not named:
        chosen, cleaned = every, places
    else:
        cleaned = [path for path in named if path in sweeps]
        chosen = [row for row in every if {Path(row["run_dir"]), Path(row["run_dir"]).parent} & {*named}]
    return [
        *(copy for place in cleaned for copy in old_copies(place, _within(every, place))),
        *(file for place in cleaned for file in old_environments(place, _within(every, place))),
        *(entry for place in cleaned for entry in old_lists(place)),
        *old_checkpoints(chosen, every, places),
        *unfinished_files(cleaned, chosen),
        *(failed_runs(chosen) if arguments.failed else ()),
    ]


def _named(text: str, root: str) -> Path:
    path = find_sweep(text, root) or find(text, root).absolute()
    return path.parent.resolve() / path.name


def _within(every: Iterable[dict[str, Any]], place: Path) -> list[dict[str, Any]]:
    """Runs in a folder, or in the sweeps in it."""
    return [row for row in every if place in (Path(row["run_dir"]).parent, Path(row["run_dir"]).parent.parent)]


def _listed(found: Sequence[Leftover]) -> list[str]:
    """What is to go, by kind, the largest of each by name."""
    lines = []
    for kind, what in KINDS.items():
        chosen = sorted((one for one in found if one.kind == kind), key=lambda one: -one.size)
        if chosen:
            lines.append(f"{plural(len(chosen), kind)}, {what}: {_size(sum(one.size for one in chosen))}")
            lines += [f"  {_size(one.size):>9}  {os.path.relpath(one.path)}" for one in chosen[:MOST_LISTED]]
            if more := chosen[MOST_LISTED:]:
                lines.append(f"  {_size(sum(one.size for one in more)):>9}  in {len(more)} more")
    return lines or ["there is nothing to remove"]


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} GB"


def _remove(found: Sequence[Leftover]) -> int:
    code, removed = exit_codes.FINISHED, []
    with asked_once():
        found_still = given_up(found)
    for leftover in found_still:
        try:
            removed += [leftover] if take_away(leftover) else []
        except OSError as error:
            code = exit_codes.FAILED
            print(f"launch clean: {leftover.path}: {error.strerror}", file=sys.stderr)
    kept = len(found) - len(removed)
    by_kind = {kind: sum(one.kind == kind for one in removed) for kind in KINDS}
    told = ", ".join(plural(number, kind) for kind, number in by_kind.items() if number)
    print(f"removed {told or 'nothing'}: {_size(sum(one.size for one in removed))}", end="")
    print(f"; {kept} kept, which were needed by then" if kept and not code else "")
    return code
