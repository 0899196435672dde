"""Arguments that several subcommands of `resnet` take."""

from __future__ import annotations

import argparse
from pathlib import Path

from resnet.rundir.find import ROOT


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's name under --root, or its directory")
    add_root(parser)


def add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", default=ROOT, help="folder of the runs (default: %(default)s)")


def add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, metavar="PATH", help="default: RUN/final.safetensors")
