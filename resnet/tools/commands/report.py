"""`resnet report`: one page that explains a run."""

from __future__ import annotations

import argparse

from resnet.rundir.find import find_run
from resnet.tools.arguments import add_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)


def run(arguments: argparse.Namespace) -> None:
    from resnet.tools.report.report import write_report

    print(write_report(find_run(arguments.run, arguments.root)))
