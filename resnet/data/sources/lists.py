"""Lists of images with or without labels: CSV files as training reads them, and text files with a path a line."""

from __future__ import annotations

import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recipes.text import did_you_mean, near, plural
from resnet.data.sources.csv_manifest import called_label, missing_below, natural, open_rows
from resnet.data.sources.files import Files, Names
from resnet.data.sources.image_folder import EXTENSIONS, is_image

_SAMPLED = 100
_ENDING = "|".join(re.escape(ending) for ending in EXTENSIONS)
_LABELLED = re.compile(rf"(.+?(?:{_ENDING}))[\s,;]+(\S.*)", re.IGNORECASE)
"""A line as `n01440764/x.JPEG 0`."""


class Columns(NamedTuple):
    """Which columns of a CSV file to read, by name or by position from 1; None: for labels the one called label or
    labels, else the one behind the file names if any; for these the first other one."""

    file: str | None = None
    label: str | None = None


class Listed(NamedTuple):
    """A list's images, each with the text that it is called by there, and what the user should know."""

    files: Files
    ids: Names
    notes: list[str]


class Labels:
    """Collects a label a row: its index into the sorted distinct texts, -1 for none."""

    def __init__(self) -> None:
        self._rows, self._index = array("q"), {"": -1}

    def add(self, text: str) -> None:
        self._rows.append(self._index.setdefault(text, len(self._index) - 1))

    def read(self, key: Callable[[str], Any] = natural) -> tuple[np.ndarray, list[str]]:
        """Labels (n,) int64 and their texts, sorted by `key`; by default "class 2" before "class 10"."""
        texts = list(self._index)[1:]
        order = sorted(range(len(texts)), key=lambda number: key(texts[number]))
        rank = np.empty(len(texts) + 1, dtype=np.int64)
        rank[order] = np.arange(len(texts))
        rank[-1] = -1
        return rank[np.array(self._rows, dtype=np.int64)], [texts[number] for number in order]


def read_list(file: Path, columns: Columns, images: Path | None, soft: Columns) -> Listed:
    """The images that a list names, in its order, below `images` (None: beside the list).

    A name without an extension is that of the image with this stem. soft: columns to take where the file has them and
    `columns` names none. Raises ValueError for a list that cannot be read, and one none of whose images is there.
    """
    labels, notes = Labels(), []
    ids = Names(_lines(file, labels) if _is_text(file) else _csv_ids(file, columns, soft, labels, notes))
    if not len(ids):
        raise ValueError(f"{file} names no images")
    root = _root(file, ids, images, notes)
    names = _with_extensions(root, ids, notes)
    sample = [names[index] for index in range(min(len(names), _SAMPLED))]
    if len(list(missing_below(root, sample))) == len(sample) and _all_missing(root, names):
        raise ValueError(_none_there(file, root, names))
    return Listed(Files(root, names, *labels.read()), ids, notes)


def _is_text(file: Path) -> bool:
    return file.suffix.lower() in (".txt", ".lst", ".list")


def _lines(file: Path, labels: Labels) -> Iterator[str]:
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for line in lines:
            if not (name := line.strip()) or name.startswith("#"):
                continue
            both = None if is_image(os.path.basename(name)) else _LABELLED.fullmatch(name)
            labels.add(both[2] if both else "")
            yield _checked(both[1] if both else name, file)


def _csv_ids(file: Path, columns: Columns, soft: Columns, labels: Labels, notes: list[str]) -> Iterator[str]:
    """The text of the file column in each row, its label added to `labels`."""
    with _rows(file, notes) as (header, rows):
        called = called_label(header)
        file_at = _column(header, columns.file, soft.file, int(called == 0 and len(header) > 1), file)
        assert file_at is not None
        behind = file_at + 1 if called in (None, file_at) else called
        label_at = _column(header, columns.label, soft.label, behind, file)
        for row in rows:
            if not any(map(str.strip, row)):
                continue
            if file_at >= len(row) or not row[file_at].strip():
                raise ValueError(f"{file}: row {','.join(row)!r} has no file name")
            labels.add(row[label_at].strip() if label_at is not None and label_at < len(row) else "")
            yield _checked(row[file_at].strip(), file)


@contextmanager
def _rows(file: Path, notes: list[str]) -> Iterator[tuple[list[str], Iterable[list[str]]]]:
    """Header and rows; a first line that names an image is a row."""
    with open_rows(file, str(file), errors="surrogateescape") as (header, rows):
        if header and is_image(os.path.basename(header[0])):
            notes.append(f"{file} has no header: its first line is an image")
            yield [f"column {number}" for number in range(1, len(header) + 1)], _chained(header, rows)
        else:
            yield header, rows


def _chained(first: list[str], rows: Iterable[list[str]]) -> Iterator[list[str]]:
    yield first
    yield from rows


def _column(header: list[str], asked: str | None, soft: str | None, otherwise: int, file: Path) -> int | None:
    """Position of a column from 0; None where none was asked for and there is none at `otherwise`."""
    if asked is None:
        if soft in header:
            return header.index(soft)
        if otherwise == 0 and not header:
            raise ValueError(f"{file} is empty")
        return otherwise if otherwise < len(header) else None
    if asked in header:
        return header.index(asked)
    if asked.isdecimal() and 1 <= int(asked) <= len(header):
        return int(asked) - 1
    hint = f": {did_you_mean(close)}" if (close := near(asked, header)) else ""
    raise ValueError(f"{file} has no column {asked!r}{hint}; its columns are {', '.join(header)}")


def _checked(name: str, file: Path) -> str:
    if "\0" in name:
        raise ValueError(f"{file} is not a text file in UTF-8")
    return name


def _root(file: Path, ids: Names, images: Path | None, notes: list[str]) -> Path:
    """The folder that names start from: `images`, else the list's, or this one for lists that `find` wrote here."""
    if images is not None:
        return images
    if _is_text(file) and not (file.parent / ids[0]).exists() and Path(ids[0]).exists() and file.parent != Path():
        notes.append(f"the paths in {file} start from {Path.cwd()}, not from its own folder")
        return Path()
    return file.parent


def _with_extensions(root: Path, ids: Names, notes: list[str]) -> Names:
    """Names of files: an id that is none, and has no extension of an image, becomes the image with this stem."""
    endings: Counter[str] = Counter()
    content = cache(_stems)

    def names() -> Iterator[str]:
        for index in range(len(ids)):
            name = ids[index]
            folder, base = os.path.split(name)
            if not base.lower().endswith(EXTENSIONS):
                found = content(os.path.join(root, folder)).get(base)
                if found is not None:
                    endings[found[len(base) :]] += 1
                    name = os.path.join(folder, found)
            yield name

    changed = Names(names())
    if not endings:
        return ids
    kinds = ", ".join(f"*{ending}" for ending, _ in endings.most_common(3))
    notes.append(f"{plural(sum(endings.values()), 'id')} had no extension: matched to {kinds} in {root}")
    return changed


def _stems(folder: str) -> dict[str, str]:
    """By name without its extension: the first of the images in a folder; nothing where a file has the bare name."""
    if not os.path.isdir(folder):
        return {}
    names = sorted(os.listdir(folder), reverse=True)
    stems = {os.path.splitext(name)[0]: name for name in names if is_image(name)}
    for name in names:
        if not is_image(name):
            stems.pop(name, None)
    return stems


def _all_missing(root: Path, names: Names) -> bool:
    missing = missing_below(root, (names[index] for index in range(len(names))))
    return sum(1 for _ in missing) == len(names)


def _none_there(file: Path, root: Path, names: Names) -> str:
    first = os.path.normpath(os.path.join(root, names[0]))
    said = f"none of the {plural(len(names), 'image')} in {file} is there: the first should be {first}"
    with os.scandir(root) as entries:
        for folder in sorted(entry.path for entry in entries if entry.is_dir()):
            beside = _with_extensions(Path(folder), Names([names[0]]), [])[0]
            if os.path.exists(os.path.join(folder, beside)):
                return f"{said}; it is in {folder}: give --images {folder}"
    return f"{said}. Give --images FOLDER where they lie elsewhere, --file-column NAME where another column names them"
