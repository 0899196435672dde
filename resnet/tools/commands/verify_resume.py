"""`resnet verify-resume`: whether a recipe, on this machine, ends the same when it is interrupted."""

from __future__ import annotations

import argparse
from pathlib import Path

from recipes.load import load
from recipes.text import plural
from resnet.process.exit_codes import FAILED, FINISHED

LISTED = 20
"""Differences of two runs that are printed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help="recipe=NAME and changes to it")
    parser.add_argument("--steps", type=int, default=12, metavar="N", help="optimizer steps of each run (12)")
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="processes, one for each GPU (1)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the two runs there")


def run(arguments: argparse.Namespace) -> int:
    from resnet.tools.verify_resume import verify_resume

    found = verify_resume(arguments.overrides, arguments.steps, arguments.ranks, arguments.keep, tell=_print_now)
    if not found:
        print("equal to the last bit: weights, statistics, optimizer, counters, log")
        return FINISHED
    print(f"NOT equal, {plural(len(found), 'difference')}:", *found[:LISTED], sep="\n  ")
    if len(found) > LISTED:
        print(f"  ... and {len(found) - LISTED} more")
    deterministic = load(arguments.overrides).recipe.deterministic
    if not deterministic and any(name in str(found) for name in ("model", "optimizer")):
        print("on a GPU, sums in unordered kernels differ from run to run: deterministic=true orders them, at a cost")
    return FAILED


def _print_now(line: str) -> None:
    print(line, flush=True)
