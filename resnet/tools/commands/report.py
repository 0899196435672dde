"""`resnet report`: one page that explains a run, compares several, or shows a sweep."""

from __future__ import annotations

import argparse
from pathlib import Path

from resnet.rundir.find import find_run, find_sweep
from resnet.tools.arguments import add_root


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="a run's name under --root, or its directory; several; or one sweep"
    )
    add_root(parser)
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="of the page that compares several (default: comparison.html by them)"
    )


def run(arguments: argparse.Namespace) -> None:
    names, root = arguments.runs, arguments.root
    sweeps = {name: found for name in names if (found := find_sweep(name, root))}
    if arguments.out and len(names) == 1:
        raise ValueError("--out is of the page that compares several runs; a run's, or a sweep's, is its report.html")
    if sweeps and len(names) > 1:
        name = next(iter(sweeps))
        raise ValueError(f"{name} is a sweep: report it alone, or name its trials, as in {name}/*")
    if sweeps:
        from resnet.tools.board.sweep import write_sweep_report

        print(write_sweep_report(sweeps[names[0]]))
        return
    run_dirs = list(dict.fromkeys(find_run(name, root).absolute() for name in names))
    if len(run_dirs) == 1:
        from resnet.tools.report.report import write_report

        print(write_report(find_run(names[0], root)))
    else:
        from resnet.tools.board.comparison import write_comparison

        print(write_comparison(run_dirs, arguments.out))
