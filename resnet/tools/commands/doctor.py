"""`resnet doctor`: whether this machine's disk and cores keep up with what a recipe trains, and what to change."""

from __future__ import annotations

import argparse

from recipes.load import load
from resnet.rundir.files import to_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Whether this machine can send runs to a cluster is told by `launch doctor`."
    parser.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help="recipe=NAME and changes to it")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="for each of three parts, about (3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the lines")


def run(arguments: argparse.Namespace) -> None:
    if not arguments.seconds > 0:
        raise ValueError(f"--seconds {arguments.seconds:g}: give more than 0")
    recipe = load(arguments.overrides).recipe
    from resnet.tools.doctor import examine
    from resnet.tools.doctor_advice import as_json, told

    found = examine(recipe, arguments.seconds)
    print(to_json(as_json(found), indent=1) if arguments.json else "\n".join(told(found)))
