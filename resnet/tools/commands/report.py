"""`resnet report`: one page that explains a run, compares several, or shows a sweep."""

from __future__ import annotations

import argparse
from pathlib import Path

from resnet.tools.arguments import add_root


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "a run's name under --root, or its directory; several of them; or a sweep"
    parser.add_argument("runs", metavar="RUN", nargs="+", help=what)
    add_root(parser)
    where = "of the page that compares several runs (default: comparison.html in their folder)"
    parser.add_argument("--out", type=Path, metavar="PATH", help=where)


def run(arguments: argparse.Namespace) -> None:
    from resnet.tools.reports import write_pages

    print(write_pages(arguments.runs, arguments.root, arguments.out))
