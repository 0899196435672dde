"""`resnet eval`: the figures of a run's weights on validation images."""

from __future__ import annotations

import argparse
import sys

from recipes.load import load
from resnet.rundir.files import to_json
from resnet.rundir.find import find_run
from resnet.tools.arguments import add_run, add_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the recipe, as eval.flip=true")
    add_weights(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> None:
    import torch

    from resnet.process.environment import cores_of_rank
    from resnet.tools.evaluate import evaluate

    run_dir = find_run(arguments.run, arguments.root)
    loaded = load([f"recipe={run_dir / 'recipe.yaml'}", *arguments.overrides])
    # As many as training takes, so that it rounds as training did.
    torch.set_num_threads(cores_of_rank())
    result = evaluate(run_dir, loaded.recipe, arguments.weights)
    for line in (*loaded.notes, *(f"warning: {warning}" for warning in result.warnings)):
        print(line, file=sys.stderr)
    if arguments.json:
        figures = {name: getattr(result, name) for name in ("top1", "top5", "loss", "samples")}
        print(to_json(figures | {"weights": str(result.weights), "run": str(result.run)}))
    else:
        print(
            f"top-1 {result.top1:.2f}%  top-5 {result.top5:.2f}%  loss {result.loss:.4f}  "
            f"{result.samples} images  {result.weights}"
        )
