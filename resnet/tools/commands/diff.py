"""`resnet diff`: what matters of how two runs, or two recipes, differ."""

from __future__ import annotations

import argparse
from pathlib import Path

from recipes.load import load, load_file
from recipes.schema.recipe import Recipe
from resnet.rundir.files import to_json
from resnet.rundir.find import find_run
from resnet.tools.arguments import add_root


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name in ("one", "other"):
        parser.add_argument(name, metavar="RUN", help="a run, a sweep's trial (SWEEP/TRIAL), or recipe=NAME")
    add_root(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> None:
    from resnet.tools.difference import described, diff_recipes, diff_runs

    sides = [_side(text, arguments.root) for text in (arguments.one, arguments.other)]
    (one, first), (other, second) = sides
    if isinstance(one, Path) and isinstance(other, Path):
        found = diff_runs(one, other, (first, second))
    else:
        found = diff_recipes((str(one), str(other)), (first, second))
    if arguments.json:
        parting = None if found.parting is None else found.parting._asdict()
        print(to_json(found._asdict() | {"parting": parting}, indent=1))
    else:
        print("\n".join(described(found)))


def _side(text: str, root: str) -> tuple[Path | str, Recipe]:
    """A run's directory, or a recipe's name; and the recipe."""
    if text.startswith("recipe="):
        return text.partition("=")[2], load([text]).recipe
    run_dir = find_run(text, root)
    return run_dir, load_file(run_dir / "recipe.yaml").recipe
