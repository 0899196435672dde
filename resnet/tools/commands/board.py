"""`resnet board`: all runs and sweeps of a folder on one page."""

from __future__ import annotations

import argparse
from pathlib import Path

from resnet.rundir.find import ROOT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", metavar="ROOT", nargs="?", default=ROOT, help=f"folder of the runs (default: {ROOT})")
    parser.add_argument("--out", type=Path, metavar="PATH", help="of the page (default: ROOT/board.html)")


def run(arguments: argparse.Namespace) -> None:
    from resnet.tools.board.board import write_board

    print(write_board(Path(arguments.root).expanduser(), arguments.out))
