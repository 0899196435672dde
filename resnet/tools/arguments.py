"""Arguments that several subcommands of `resnet` take."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from resnet.rundir.find import ROOT

_CHANGE = re.compile(r"[a-z_][a-z0-9_.]*=")
"""How a change to the recipe begins."""


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's name under --root, or its directory")
    add_root(parser)


def add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", default=ROOT, help="folder of the runs (default: %(default)s)")


def add_trained(parser: argparse.ArgumentParser) -> None:
    """RUN as all that weights can be named by, and changes to its recipe among the words behind it."""
    help = "a run's name under --root or its directory, RUN@last, RUN@step-500, or a file of weights"
    parser.add_argument("run", metavar="RUN", help=help)
    add_root(parser)


def positive(text: str) -> int:
    """A number of images, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: it takes 1 or more")
    return int(text)


def share(text: str) -> float:
    """A share of a whole, neither nothing nor all of it, for argparse."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text}: give a share above 0 and below 1, as 0.5")


def add_lists(parser: argparse.ArgumentParser) -> None:
    """How CSV files and other lists of images are read."""
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="where names in a list start (the list's folder)")
    parser.add_argument("--file-column", metavar="NAME", help="column of file names in a CSV file (the first)")
    parser.add_argument(
        "--label-column", metavar="NAME", help="column of labels (the one called label, else the next one)"
    )


def split_changes(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """What among a command's words is a path, and what a change to the recipe, as eval.flip=true."""
    changes = [word for word in words if _CHANGE.match(word) and not os.path.exists(word)]
    return [word for word in words if word not in changes], changes


def read_step(text: str | None, option: str) -> int | None:
    """A step, as step-500 or 500. option: for the message of the ValueError."""
    if text is None:
        return None
    if not (number := re.fullmatch(r"(?:step-)?(\d+)", text)):
        raise ValueError(f"{option} {text}: give a step, as step-500 or 500")
    return int(number[1])
