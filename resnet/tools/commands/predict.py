"""`resnet predict`: images, labelled or not, classified by trained weights."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from recipes.text import plural
from resnet.process.exit_codes import FAILED, FINISHED
from resnet.tools.arguments import add_lists, add_trained, split_changes
from resnet.tools.output import check_output, counted, open_output, refuse_input
from resnet.tools.prediction_rows import (
    Columns,
    csv_row,
    json_row,
    parse_columns,
    printable,
    ranked_columns,
    terminal_line,
    terminal_table,
)

if TYPE_CHECKING:
    from resnet.data.sources.given import Given
    from resnet.tools.predict import Prediction

MOST_IN_A_GRID = 48
_MOST_LISTED = 20
_TOP_OF_ONE, _TOP_IN_A_GRID = 5, 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trained(parser)
    what = "images, folders, patterns in quotes, lists (.csv, .txt), parquet; and KEY=VALUE, changes to the recipe"
    parser.add_argument("paths", nargs="+", metavar="IMAGE|FOLDER|CSV", help=what)
    parser.add_argument("--top", type=int, metavar="K", help="classes told of each image (1; of one image 5)")
    parser.add_argument("--csv", type=Path, metavar="OUT", help="CSV file to write; default: standard output")
    parser.add_argument(
        "--columns",
        metavar="NAMES",
        help="of the CSV file, as id,label or image_id=id,breed=label or id,probabilities (file,label,probability)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object for each image, a line each")
    parser.add_argument("--grid", type=Path, metavar="OUT", help=f"PNG of up to {MOST_IN_A_GRID} images to write")
    add_lists(parser)
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images of a forward pass (64)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    paths, changes = split_changes(arguments.paths)

    from resnet.data.sources.given import files_read, open_given, unmatched_text
    from resnet.tools.forward import choose_device, evaluation_precision
    from resnet.tools.picture_grid import draw_grid
    from resnet.tools.predict import named, predictions, spread_over, tiles_of
    from resnet.tools.trained import find_trained

    trained = named(find_trained(arguments.run, arguments.root, overrides=changes))
    classes = trained.classes
    columns = (arguments.file_column, arguments.label_column)
    source = open_given(paths, classes, columns, arguments.images, trained.recipe.data)
    for option, path in _outputs(arguments).items():
        refuse_input(path, option, files_read(paths, source))
    writer = _Writer(arguments, source, classes)
    notes = [*trained.notes, *source.notes, *writer.notes]
    evaluation_precision(trained.recipe, choose_device(arguments.device), notes.append)
    print(*(f"{note}\n" for note in notes), sep="", end="", file=sys.stderr)
    found = predictions(trained, source, writer.top, arguments.batch_size, arguments.device)
    shown = spread_over(len(source), MOST_IN_A_GRID) if arguments.grid else set()
    kept = {}
    # Closed whatever happens: a worker that is left would keep this process from ending.
    with contextlib.closing(found), writer.open() as write:
        for index, prediction in enumerate(counted(found, len(source), quiet=writer.shown)):
            write(prediction)
            if index in shown:
                kept[index] = prediction
    if arguments.grid:
        title = f"{trained.name}: {len(kept)} of {plural(len(source), 'image')}"
        draw_grid(tiles_of(kept, source, trained), arguments.grid, title=title)
    if source.unmatched:
        print(unmatched_text(source), file=sys.stderr)
    writer.tell()
    return FAILED if writer.broken == len(source) else FINISHED


def _check(arguments: argparse.Namespace) -> None:
    for option, least in (("batch_size", 1), ("top", 1)):
        value = getattr(arguments, option)
        if value is not None and value < least:
            raise ValueError(f"--{option.replace('_', '-')} {value}: it takes {least} or more")
    for option, path in _outputs(arguments).items():
        check_output(path, option, (".png",) if option == "--grid" else (".csv", ".tsv", ".txt"))
    if arguments.columns and arguments.top and not arguments.grid:
        raise ValueError("--columns says which classes are told: leave out --top, or give topK or probabilities there")
    if arguments.json and (arguments.csv or arguments.columns):
        raise ValueError("--json prints JSON on standard output: leave out --csv and --columns")


def _outputs(arguments: argparse.Namespace) -> dict[str, Path]:
    """The files to be written, by the option that names them."""
    named = {"--csv": arguments.csv, "--grid": arguments.grid}
    return {option: path for option, path in named.items() if path is not None}


class _Writer:
    """Writes predictions as they come, and counts what is told at the end."""

    def __init__(self, arguments: argparse.Namespace, source: Given, classes: list[str]) -> None:
        self._arguments, self._source, self._known = arguments, source, set(classes)
        self._longest = min(30, max(map(len, classes)))
        plain = not (arguments.csv or arguments.json or arguments.columns)
        self.on_terminal = plain and sys.stdout.isatty()
        self.shown = arguments.csv is None and sys.stdout.isatty()
        self._one = self.on_terminal and len(source) == 1
        self._columns = self._chosen_columns(classes)
        asked = max(arguments.top or 0, self._columns.top)
        all_told = f"{asked} classes an image are asked for, and the network has {len(classes)}: all are told"
        self.notes = [all_told] if asked > len(classes) else []
        """What the user should know before."""
        self.top = max(arguments.top or (_TOP_OF_ONE if self._one or arguments.json else 1), self._columns.top)
        self.top = max(self.top, _TOP_IN_A_GRID) if arguments.grid else self.top
        self._labelled = self._right = 0
        self.broken = 0
        """Images that cannot be read."""

    def _chosen_columns(self, classes: list[str]) -> Columns:
        if self._arguments.columns:
            return parse_columns(self._arguments.columns, classes)
        return ranked_columns(min(self._arguments.top or 1, len(classes)))

    @contextlib.contextmanager
    def open(self) -> Iterator[Callable[[Prediction], None]]:
        """A function that writes a prediction; the file is whole at the end, or as it was before."""
        place = open_output(self._arguments.csv) if self._arguments.csv else contextlib.nullcontext(sys.stdout.buffer)
        with place as file:
            if not self._arguments.json and not self.on_terminal:
                file.write(csv_row(self._columns.header))
            yield lambda prediction: self._take(prediction, file)
        sys.stdout.flush()

    def _take(self, prediction: Prediction, file: BinaryIO) -> None:
        if prediction.problem is not None:
            self.broken += 1
            if self.broken <= _MOST_LISTED:
                print(f"warning: cannot read {printable(prediction.file)}: {prediction.problem}", file=sys.stderr)
        elif prediction.true in self._known:
            self._labelled += 1
            self._right += prediction.true == prediction.label
        file.write(self._row(prediction))
        if self.shown:
            file.flush()

    def _row(self, prediction: Prediction) -> bytes:
        if self._arguments.json:
            return json_row(prediction)
        if not self.on_terminal:
            return csv_row(self._columns.row(prediction))
        encoding = sys.stdout.encoding or "ascii"
        if self._one:
            width = shutil.get_terminal_size().columns
            lines = terminal_table(prediction, width, blocks=encoding.lower().startswith("utf"))
        else:
            lines = [terminal_line(prediction, self._longest)]
        return "".join(f"{line}\n" for line in lines).encode(encoding, "replace")

    def tell(self) -> None:
        """The last line, on stderr."""
        if self.broken > _MOST_LISTED:
            print(f"warning: {self.broken - _MOST_LISTED:,} more cannot be read", file=sys.stderr)
        if self._labelled:
            share = 100 * self._right / self._labelled
            print(
                f"{self._right:,} of {plural(self._labelled, 'labelled image')} right ({share:.2f}%)", file=sys.stderr
            )
        if self._one:
            return
        where = f" in {self._arguments.csv}" if self._arguments.csv else ""
        have = "has" if self.broken == 1 else "have"
        note = f"; {self.broken:,} could not be read and {have} no label" if self.broken else ""
        print(f"{plural(len(self._source), 'image')}{where}{note}", file=sys.stderr)
