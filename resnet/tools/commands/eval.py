"""`resnet eval`: the figures of networks on labelled images, in one table."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.text import plural
from resnet.rundir.files import to_json
from resnet.tools.arguments import add_lists, add_root, split_changes
from resnet.tools.output import check_output, counted, open_output, refuse_input

if TYPE_CHECKING:
    from resnet.tools.evaluate import Evaluation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN|KEY=VALUE",
        help="a run, RUN@best, RUN@last, RUN@step-500, or a file of weights; and changes to the recipe, as "
        "eval.flip=true or augment.val_size=256",
    )
    parser.add_argument(
        "--data", action="append", metavar="PATH", help="other images: a folder of classes, a CSV file, parquet ..."
    )
    parser.add_argument(
        "--split", choices=("val", "test"), default="val", help="the recipe's images: validation (default) or test"
    )
    parser.add_argument("--known-only", action="store_true", help="leave out images of classes the network lacks")
    parser.add_argument("--only-present", action="store_true", help="answer only classes the data holds (ImageNet-A/R)")
    parser.add_argument("--real", type=Path, metavar="FILE", help="score by ImageNet-ReaL's real.json")
    parser.add_argument("--plain", action="store_true", help="the trained weights, not their average (EMA, SWA)")
    parser.add_argument("--per-class", action="store_true", help="the accuracy of each class, the worst first")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", nargs="?", const="-", metavar="OUT.csv", help="write CSV, by default to standard output")
    form.add_argument("--json", action="store_true", help="print a JSON list, an object an evaluation")
    add_lists(parser)
    add_root(parser)


def run(arguments: argparse.Namespace) -> None:
    names, changes = split_changes(arguments.runs)
    _check(arguments, names)
    try:
        _run(arguments, names, changes)
    except ValueError as error:
        keys = {change.partition("=")[0] for change in changes}
        if keys & {"data.val", "data.source"} and "data.train" not in keys and not arguments.data:
            error.args = (f"{error}\nTo evaluate on other images give them as --data PATH",)
        raise


def _run(arguments: argparse.Namespace, names: list[str], changes: list[str]) -> None:
    import torch

    from resnet.build import build_accelerator
    from resnet.data.sources.given import files_of, files_read
    from resnet.process.environment import cores_of_rank
    from resnet.process.mistakes import OfAllRanks
    from resnet.ranks import leave_ranks
    from resnet.tools.eval_data import DataOptions
    from resnet.tools.evaluate import evaluate
    from resnet.tools.trained import find_trained

    trained = [find_trained(name, arguments.root, arguments.plain, changes) for name in names]
    options = DataOptions(
        tuple(arguments.data or ()),
        arguments.images,
        (arguments.file_column, arguments.label_column),
        arguments.real,
        arguments.only_present,
        arguments.split,
        arguments.known_only,
    )
    if arguments.csv not in (None, "-"):
        own = [file for one in trained for file in files_of(one.recipe.data)]
        read = files_read(options.data) if options.data else own
        refuse_input(Path(arguments.csv), "--csv", [*read, *([options.real] if options.real else [])])
    ranks, first = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK", "0") == "0"
    several = ranks > 1

    def watch(batches, images: int):
        return counted(batches, images, not first, lambda batch: ranks * (batch.key.stop - batch.key.start))

    if several:
        # Of its precision nothing is taken, and fp16 would be refused on a CPU.
        build_accelerator(trained[0].recipe.model_copy(update={"precision": "no"}))
    else:
        # As many as training takes, so that it rounds as training did.
        torch.set_num_threads(cores_of_rank())
    try:
        results = evaluate(trained, options, several, watch)
    except OfAllRanks:
        leave_ranks()
        raise
    if several:
        leave_ranks()
    if first:
        _tell(results, arguments)


def _check(arguments: argparse.Namespace, names: list[str]) -> None:
    if not names:
        raise ValueError("give a run, or a file of weights, beside changes to its recipe")
    if arguments.csv not in (None, "-") and not arguments.csv.endswith(".csv"):
        raise ValueError(f"--csv {arguments.csv}: give a file that ends in .csv, or --csv last for standard output")
    if arguments.csv not in (None, "-"):
        check_output(Path(arguments.csv), "--csv")
    for option in ("known_only", "images", "file_column", "label_column"):
        if getattr(arguments, option) and not arguments.data:
            raise ValueError(f"--{option.replace('_', '-')} is for other data, which --data names")
    if arguments.split != "val" and arguments.data:
        raise ValueError("--split is for the recipe's own images, --data for others: give one of them")
    if arguments.real is not None and arguments.per_class:
        raise ValueError("--real counts several classes as right for an image: it has no --per-class")


def _tell(results: list[Evaluation], arguments: argparse.Namespace) -> None:
    from resnet.tools.eval_table import as_csv, as_objects, as_table, class_table

    told = [line for found in results for line in (*found.notes, *(f"warning: {text}" for text in found.warnings))]
    print(*dict.fromkeys(told), sep="\n", end="\n" if told else "", file=sys.stderr)
    if arguments.json:
        print(to_json(as_objects(results, arguments.per_class), indent=1))
    elif arguments.csv == "-":
        print(as_csv(results, arguments.per_class), end="")
    elif arguments.csv is not None:
        with open_output(Path(arguments.csv)) as file:
            file.write(as_csv(results, arguments.per_class).encode())
        print(f"{plural(len(results), 'evaluation')} in {arguments.csv}")
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(*as_table(results, width), sep="\n")
        if arguments.per_class:
            print("", *class_table(results, width), sep="\n")
