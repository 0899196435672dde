"""`resnet prune`: a smaller network, as a run of its own."""

from __future__ import annotations

import argparse
import shlex
import sys

from resnet.process.exit_codes import FAILED
from resnet.tools.arguments import add_trained, positive, share, split_changes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trained(parser)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="changes to the run's recipe, as data.val=...")
    parser.add_argument("--amount", type=share, required=True, metavar="SHARE", help="share that is removed, as 0.5")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--structured", action="store_true", help="remove that share of each layer's channels (default)")
    kind.add_argument(
        "--unstructured",
        action="store_true",
        help="set that share of all weights of convolutions to zero: the shape stays, nothing gets faster",
    )
    parser.add_argument("--importance", choices=("l2", "batchnorm"), help="what makes a channel matter (l2)")
    parser.add_argument(
        "--skip", nargs="+", default=[], metavar="PART", help="stem, layer1, layer2 ...: what keeps its channels"
    )
    parser.add_argument(
        "--samples", type=positive, default=10_000, metavar="N", help="validation images to measure both with (10000)"
    )
    parser.add_argument("--name", help="of the new run, which will lie beside RUN (RUN-pruned)")


def run(arguments: argparse.Namespace) -> int | None:
    words, changes = split_changes(arguments.changes)
    if words:
        raise ValueError(f"unexpected argument {words[0]}: changes have the form KEY=VALUE")

    from resnet.rundir.chain import train_words
    from resnet.rundir.files import to_json
    from resnet.tools.export.measure import table_of
    from resnet.tools.export.prune import IMPORTANCES, Pruning
    from resnet.tools.export.pruned_run import prune
    from resnet.tools.export.served import NotServed
    from resnet.tools.trained import find_trained

    trained = find_trained(arguments.run, arguments.root, overrides=changes)
    pruning = Pruning(
        arguments.amount, not arguments.unstructured, arguments.importance or IMPORTANCES[0], tuple(arguments.skip)
    )
    try:
        made = prune(trained, pruning, arguments.name, arguments.samples, lambda line: print(line, file=sys.stderr))
    except NotServed as error:
        print(f"resnet prune: {error}", file=sys.stderr)
        return FAILED
    notes = [*trained.notes, *made.evaluation.notes, *(f"warning: {text}" for text in made.evaluation.warnings)]
    print(*(f"{note}\n" for note in notes), sep="", end="", file=sys.stderr)
    print(*table_of(made.measured), sep="\n")
    if not pruning.structured:
        print(f"{100 * made.zeros:.1f}% of the convolutions' weights are zero")
    print(f"{made.run_dir}: top-1 {made.evaluation.top1:.2f}% of {made.evaluation.samples:,} images")
    # Its own recipe: that of a run that was pruned before names other channels.
    tuned = train_words(made.run_dir, made.run_dir, [f"run.name={to_json(f'{made.run_dir.name}-tuned')}"])
    print(f"fine-tune it: accelerate launch train.py {shlex.join(tuned)}")
    return None
