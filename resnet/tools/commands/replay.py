"""`resnet replay`: train some steps of a run again, from its checkpoint, and compare with what it left."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.text import plural
from resnet.process.exit_codes import FAILED, FINISHED
from resnet.rundir.files import to_json
from resnet.rundir.find import find_run
from resnet.tools.arguments import add_run, read_step

if TYPE_CHECKING:
    from resnet.tools.replay import Replay

LISTED = 12
"""Differences that are printed."""
_SHOWN = {"step": "step", "train/loss": "loss", "train/top1": "top-1 %", "grad_norm": "grad norm", "lr": "lr"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes, as data.train=... of this machine")
    parser.add_argument("--from", dest="first", metavar="step-N", help="the checkpoint to begin from (the earliest)")
    parser.add_argument("--to", dest="last", metavar="step-M", help="where to end (the next checkpoint, else the end)")
    parser.add_argument("--log-every", type=int, metavar="N", help="log every N steps, and print these lines")
    parser.add_argument("--dump-batches", action="store_true", help="draw the images of each step into FOLDER/batches")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave what is trained again there")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    from resnet.tools.replay import replay

    found = replay(
        find_run(arguments.run, arguments.root),
        read_step(arguments.first, "--from"),
        read_step(arguments.last, "--to"),
        log_every=arguments.log_every,
        dump_batches=arguments.dump_batches,
        keep=arguments.keep,
        overrides=arguments.overrides,
        tell=(lambda _: None) if arguments.json else _print_now,
    )
    if arguments.json:
        print(to_json(found._asdict(), indent=1))
    else:
        if arguments.log_every:
            _print_rows(found.rows)
        print("\n".join(_described(found)))
    return FINISHED if found.close else FAILED


def _described(found: Replay) -> list[str]:
    steps = f"steps {found.first + 1} to {found.last}"
    if found.equal:
        return [f"{steps}: equal to the last bit", *found.notes]
    if found.close:
        lines = [f"{steps}: equal but for rounding"]
    else:
        lines = [f"{steps}: NOT equal, {plural(len(found.differences), 'difference')}:"]
        lines += [f"  {line}" for line in found.differences[:LISTED]]
        if (more := len(found.differences) - LISTED) > 0:
            lines.append(f"  ... and {more} more (--json)")
    changed = [f"{key} {then} -> {now}" for key, (then, now) in found.environment.items()]
    return [*lines, *found.notes, *([f"then and now: {'; '.join(changed)}"] if changed else [])]


def _print_rows(rows: Sequence[dict[str, Any]]) -> None:
    train = [row for row in rows if "train/loss" in row]
    print("  ".join(f"{name:>10}" for name in _SHOWN.values()))
    for row in train:
        cells = (row.get(key) for key in _SHOWN)
        print("  ".join(f"{'' if cell is None else format(cell, '.6g'):>10}" for cell in cells))


def _print_now(line: str) -> None:
    print(line, flush=True)
