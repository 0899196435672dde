"""How predictions are written: rows of a CSV file, JSON lines, and text on a terminal."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from recipes.text import cut, near
from resnet.rundir.files import to_json

if TYPE_CHECKING:
    from resnet.tools.predict import Prediction

_OTHER_NAMES = {
    "id": ("file", "filename", "file_name", "image", "image_id", "path"),
    "label": ("class", "category", "breed", "prediction", "predicted", "target"),
    "probability": ("confidence", "score"),
    "index": ("label_index", "class_index"),
}
"""By what a column holds: headers of columns that hold it too."""
VALUES = ("id", "label", "probability", "index", "true", "probabilities", "topK")
_MEANING = {name: value for value, names in _OTHER_NAMES.items() for name in (value, *names)}
_TOP = re.compile(r"top_?([1-9][0-9]*)")


class Column(NamedTuple):
    """A column of a CSV file, or several that stand side by side."""

    headers: Sequence[str]
    values: Callable[[Prediction], Sequence[object]]
    """A value for each header."""


class Columns(NamedTuple):
    """Columns of a CSV file, and how many of the likeliest classes they need."""

    columns: list[Column]
    top: int

    @property
    def header(self) -> list[str]:
        return [name for column in self.columns for name in column.headers]

    def row(self, prediction: Prediction) -> list[object]:
        """The cells of a prediction; None is an empty one."""
        return [value for column in self.columns for value in column.values(prediction)]


def parse_columns(text: str, classes: Sequence[str]) -> Columns:
    """Columns from `HEADER,HEADER=VALUE,...`, where a value is one of VALUES and a header that says it needs none.

    probabilities stands for a column a class, topK for the K likeliest labels with spaces between them.
    Raises ValueError for a header that says nothing.
    """
    columns, top = [], 1
    for item in text.split(","):
        header, _, value = item.strip().partition("=")
        value = value or header
        value = _MEANING.get(value.lower(), value.lower())
        if value == "probabilities":
            top = len(classes)
            columns.append(Column(classes, _probabilities(len(classes))))
        elif ranks := _TOP.fullmatch(value):
            top = max(top, int(ranks[1]))
            columns.append(_column(header, _labels_of_top(int(ranks[1]))))
        elif value in _SINGLE:
            columns.append(_column(header, _SINGLE[value]))
        else:
            close = near(value, [*_MEANING, *VALUES], 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ValueError(
                f"--columns: what is {value!r}?{hint} A header of your own takes a value, as in "
                f"{header or 'name'}=label; values are {', '.join(VALUES)}"
            )
    return Columns(columns, top)


def ranked_columns(top: int) -> Columns:
    """file,label,probability, and label_2,probability_2 and so on for those that come next."""
    columns = parse_columns("file,label,probability", ()).columns
    for rank in range(2, top + 1):
        columns += [_column(f"label_{rank}", _ranked(rank, 0)), _column(f"probability_{rank}", _ranked(rank, 1))]
    return Columns(columns, top)


def _column(header: str, value: Callable[[Prediction], object]) -> Column:
    return Column([header], lambda prediction: [value(prediction)])


def _number(value: float) -> str:
    return f"{value:.6f}"


_SINGLE: dict[str, Callable[[Prediction], object]] = {
    "id": lambda prediction: prediction.id,
    "label": lambda prediction: prediction.label,
    "probability": lambda prediction: None if prediction.label is None else _number(prediction.probability),
    "index": lambda prediction: prediction.number,
    "true": lambda prediction: prediction.true,
}


def _probabilities(classes: int) -> Callable[[Prediction], Sequence[object]]:
    """In the order of the classes, by their numbers: two may have the same name."""

    def values(prediction: Prediction) -> Sequence[object]:
        found: list[object] = [None] * classes
        for number, (_, value) in zip(prediction.numbers, prediction.top, strict=True):
            found[number] = _number(value)
        return found

    return values


def _labels_of_top(count: int) -> Callable[[Prediction], object]:
    return lambda prediction: " ".join(label for label, _ in prediction.top[:count])


def _ranked(rank: int, part: int) -> Callable[[Prediction], object]:
    def value(prediction: Prediction) -> object:
        if rank > len(prediction.top):
            return None
        found = prediction.top[rank - 1][part]
        return found if isinstance(found, str) else _number(found)

    return value


def csv_row(values: Sequence[object]) -> bytes:
    """A line of a CSV file; None is an empty cell. Names of files are bytes, which need not be text."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode("utf-8", "surrogateescape")


def json_row(prediction: Prediction) -> bytes:
    """A line of JSON, in ASCII where a file's name is no text; null for a probability that is NaN."""
    row: dict[str, Any] = {"id": prediction.id, "file": prediction.file, "label": prediction.label}
    if prediction.label is None:
        row["problem"] = prediction.problem
    else:
        row |= {"probability": prediction.probability, "index": prediction.number}
        row["top"] = [{"label": label, "probability": value} for label, value in prediction.top]
    if prediction.true is not None:
        row["true"] = prediction.true
    text = to_json(row)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(json.loads(text)).encode() + b"\n"


def printable(text: str) -> str:
    """A file's name on one line, whatever is in it."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def terminal_table(prediction: Prediction, width: int, blocks: bool) -> list[str]:
    """One image's likeliest classes, a line each, with bars; no lines where it cannot be read.

    blocks: whether the terminal shows more than ASCII.
    """
    name = printable(prediction.file)
    if prediction.label is None:
        return []
    longest = min(max(len(label) for label, _ in prediction.top), max(10, width - 30))
    room = max(5, min(40, width - longest - 12))
    lines = [name + ("" if prediction.true is None else f"  (is {prediction.true})")]
    for label, value in prediction.top:
        bar = ("█" if blocks else "#") * round(room * value)
        lines.append(f"  {cut(label, longest):{longest}}  {100 * value:5.1f}%  {bar}".rstrip())
    return lines


def terminal_line(prediction: Prediction, longest: int) -> str:
    """An image on a line: probability, class and name. longest: letters of the longest class."""
    if prediction.label is None:
        return f"     -  {'':{longest}}  {printable(prediction.id)}"
    wrong = "" if prediction.true in (None, prediction.label) else f"  (is {prediction.true})"
    label = cut(prediction.label, longest)
    return f"{100 * prediction.probability:5.1f}%  {label:{longest}}  {printable(prediction.id)}{wrong}"
