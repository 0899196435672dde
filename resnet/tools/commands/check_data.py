"""`resnet check-data`: what is wrong with the images of a training."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.load import load
from resnet.process.exit_codes import FAILED, FINISHED, INTERRUPTED
from resnet.rundir.files import to_json
from resnet.tools.arguments import add_lists, positive, split_changes
from resnet.tools.output import check_output, counted, refuse_input

if TYPE_CHECKING:
    from resnet.tools.check_data import Opened


def add_arguments(parser: argparse.ArgumentParser) -> None:
    help = "recipe=NAME and changes, as data.train=...; or the images for training: a folder, a CSV file, parquet ..."
    parser.add_argument("data", nargs="+", metavar="KEY=VALUE|PATH", help=help)
    parser.add_argument("--val", action="append", metavar="PATH", help="the images for validation, beside PATH")
    parser.add_argument("--grid", type=Path, metavar="OUT.png", help="a picture of what is suspicious to write")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, with all files, in place of the text"
    )
    parser.add_argument(
        "--channels", type=positive, default=3, metavar="N", help="of images at PATH, as model.in_channels (3)"
    )
    parser.add_argument("--pixel-max", type=positive, metavar="M", help="of images at PATH, as data.pixel_max")
    add_lists(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.grid:
        check_output(arguments.grid, "--grid", (".png",))
    opened, read = _open(arguments)

    from resnet.tools.check_data import check_data
    from resnet.tools.check_table import as_json, as_lines, draw_suspicious

    if arguments.grid:
        refuse_input(arguments.grid, "--grid", read)
    checked = check_data(opened, lambda chunks, images: counted(chunks, images, weight=lambda chunk: len(chunk.facts)))
    print(*(f"{note}\n" for note in checked.notes), sep="", end="", file=sys.stderr)
    drawn = arguments.grid and draw_suspicious(checked, arguments.grid, f"check-data {arguments.data[0]}")
    if arguments.json:
        text = to_json(as_json(checked) | {"picture": str(arguments.grid) if drawn else None}, indent=1)
        # Names that are no UTF-8 become escapes that JSON knows.
        print(text.encode("utf-8", "backslashreplace").decode())
    else:
        print(*as_lines(checked), sep="\n")
        if arguments.grid:
            print(f"picture: {arguments.grid}" if drawn else "no picture: there is nothing to show")
    if checked.stopped:
        return INTERRUPTED
    return FAILED if checked.spoils else FINISHED


def _open(arguments: argparse.Namespace) -> tuple[Opened, list[str]]:
    """What is to be checked, and the files and folders it is read from."""
    from resnet.data.sources.given import files_of, files_read
    from resnet.tools.check_data import open_paths, open_recipe

    paths, changes = split_changes(arguments.data)
    columns = arguments.file_column, arguments.label_column
    if not changes:
        opened = open_paths(paths, arguments.val, columns, arguments.images, arguments.channels, arguments.pixel_max)
        return opened, [*paths, *(arguments.val or ()), *files_read([*paths, *(arguments.val or ())])]
    if paths:
        raise ValueError(f"{paths[0]} beside {changes[0]}: give paths, or recipe=NAME and changes to it")
    for option in ("val", "images", "file_column", "label_column", "pixel_max"):
        if getattr(arguments, option):
            raise ValueError(f"--{option.replace('_', '-')} is for images at a PATH: a recipe has data.{option}=")
    if arguments.channels != 3:
        raise ValueError("--channels is for images at a PATH: a recipe has model.in_channels=")
    loaded = load(changes)
    print(*(f"{note}\n" for note in loaded.notes), sep="", end="", file=sys.stderr)
    return open_recipe(loaded.recipe), list(files_of(loaded.recipe.data))
