"""`resnet average`: the mean of weights that a run has kept."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from recipes.text import listed, plural
from resnet.tools.arguments import add_run, positive, split_changes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="changes to the run's recipe, as data.val=...")
    parser.add_argument(
        "--checkpoints",
        nargs="+",
        default=[],
        metavar="WHICH",
        help="step-500, epoch-90 (of checkpoint.weights_every), best, or a file of weights (all that the run has kept)",
    )
    parser.add_argument("--last", type=positive, metavar="N", help="only so many of the newest of them")
    parser.add_argument(
        "--recompute-bn",
        type=positive,
        metavar="IMAGES",
        help="estimate BatchNorm's statistics on so many training images (they are averaged as the weights are)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="the weights (average.safetensors in the run)")


def run(arguments: argparse.Namespace) -> None:
    words, changes = split_changes(arguments.changes)
    if words:
        raise ValueError(f"unexpected argument {words[0]}: changes have the form KEY=VALUE")

    from resnet.rundir.find import find_run
    from resnet.rundir.status import read_status
    from resnet.tools.average import average

    run_dir = find_run(arguments.run, arguments.root)
    made = average(
        run_dir,
        arguments.checkpoints,
        arguments.last,
        arguments.recompute_bn,
        arguments.output,
        changes,
        lambda line: print(line, file=sys.stderr),
    )
    found = made.evaluation
    notes = [*found.notes, *(f"warning: {text}" for text in found.warnings)]
    print(*(f"{note}\n" for note in notes), sep="", end="", file=sys.stderr)
    names = [f"{file.parent.name}/{file.name}" for file in made.of]
    print(f"the mean of {plural(len(names), 'set')} of weights: {listed(names, 6)}")
    best = read_status(run_dir).get("best")
    metric = found.recipe.eval.metric if found.recipe else "top1"
    beside = f"; the run's best: {best:.2f}%" if best is not None and metric == "top1" else ""
    print(f"{made.file}: top-1 {found.top1:.2f}% of {found.samples:,} images{beside}")
