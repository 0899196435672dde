"""`launch why`: what a run waits for, why it failed, is slow, had a spike or went wrong, and what mends it."""

from __future__ import annotations

import argparse

from launch.arguments import add_root
from launch.runs.state import find
from launch.why.facts import Facts
from launch.why.find import causes_of, figures
from launch.why.text import lines
from resnet.rundir.files import to_json
from resnet.rundir.find import find_sweep


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="name or directory of a run or a sweep")
    parser.add_argument("--json", action="store_true", help="print an object with all causes and their evidence")
    add_root(parser)


def run(arguments: argparse.Namespace) -> None:
    if sweep_dir := find_sweep(arguments.run, arguments.root):
        from launch.why.sweep import counted, sweep_lines

        found = counted(sweep_dir)
        print(to_json(found, indent=1) if arguments.json else "\n".join(sweep_lines(found)))
        return
    facts = Facts(find(arguments.run, arguments.root))
    causes = causes_of(facts)
    if arguments.json:
        told = {"name": facts.row["name"], "state": facts.state, "well": not causes, "figures": figures(facts)}
        print(to_json(told | {"causes": [cause._asdict() for cause in causes]}, indent=1))
    else:
        print("\n".join(lines(facts, causes)))
