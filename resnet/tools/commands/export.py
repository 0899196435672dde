"""`resnet export`: a trained network as a file or folder that other programs read."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from recipes.text import plural
from resnet.process.exit_codes import FAILED
from resnet.tools.arguments import add_trained, positive, split_changes

FORMATS = ("safetensors", "torch", "onnx", "pt2", "hub")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trained(parser)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="changes to the recipe, as data.val=PATH")
    parser.add_argument("--format", required=True, choices=FORMATS, help="what is written")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to (the run's exports/FORMAT)")
    parser.add_argument(
        "--samples", type=positive, default=1000, metavar="N", help="validation images to check with, at most (1000)"
    )
    parser.add_argument("--data", action="append", metavar="PATH", help="other images to check with, as for eval")
    parser.add_argument("--timm", action="store_true", help="with --format torch: a folder that timm loads")
    parser.add_argument("--push", metavar="REPO", help="with --format hub: upload the folder to huggingface.co")


def run(arguments: argparse.Namespace) -> int | None:
    paths, changes = split_changes(arguments.changes)
    if paths:
        raise ValueError(f"{paths[0]}: give one run, and changes to its recipe as KEY=VALUE")
    _check(arguments)

    from resnet.tools.eval_data import DataOptions
    from resnet.tools.export.export import Wrong, export
    from resnet.tools.export.hub import check_push, push
    from resnet.tools.export.measure import table_of
    from resnet.tools.trained import find_trained

    if arguments.push:
        check_push(arguments.push)
    trained = find_trained(arguments.run, arguments.root, overrides=changes)
    print(*(f"{note}\n" for note in trained.notes), sep="", end="", file=sys.stderr)
    form = "timm" if arguments.timm else arguments.format
    options = DataOptions(tuple(arguments.data or ()))
    try:
        exported = export(trained, form, options, arguments.samples, arguments.out, _tell)
    except Wrong as error:
        print(f"resnet export: {error}", file=sys.stderr)
        return FAILED
    for note in exported.notes:
        _tell(note)
    for check in exported.checks:
        print(*table_of(check.measured), str(check), sep="\n")
        if broken := check.measured.broken:
            _tell(f"warning: {plural(len(broken), 'image')} could not be read, the first: {broken[0]}")
    print(f"{exported.place}: {', '.join(sorted(os.listdir(exported.place)))}")
    if arguments.push:
        print(push(exported.place, arguments.push))
    return None


def _check(arguments: argparse.Namespace) -> None:
    if arguments.timm and arguments.format != "torch":
        raise ValueError("--timm says how --format torch is written")
    if arguments.push and arguments.format != "hub":
        raise ValueError("--push uploads what --format hub writes")


def _tell(line: str) -> None:
    print(line, file=sys.stderr)
