"""CSV manifests: a header, then an image's file name and its label a row."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recipes.schema.data import CsvData
from recipes.text import listed, plural
from resnet.data.sources.files import Files, existing


class Manifest(NamedTuple):
    """A manifest's images, below the folder `root`."""

    root: Path
    names: list[str]
    labels: list[str]


def open_csv(data: CsvData) -> tuple[Files, Files | None]:
    """Training and validation images; the second is None where `val` is null."""
    train = read_manifest(data, data.train, "data.train")
    classes = sorted(set(train.labels), key=natural)
    val = None if data.val is None else _files(read_manifest(data, data.val, "data.val"), classes, "data.val")
    return _files(train, classes, "data.train"), val


def _files(manifest: Manifest, classes: list[str], key: str) -> Files:
    index = {name: number for number, name in enumerate(classes)}
    if strange := sorted(set(manifest.labels) - set(classes)):
        raise ValueError(f"{key}: labels that the training images do not have: {listed(strange)}")
    return Files(manifest.root, manifest.names, np.array([index[label] for label in manifest.labels]), classes)


def read_manifest(data: CsvData, path: str, key: str) -> Manifest:
    """What the CSV file of a key lists. Raises ValueError, also where images of it are not there."""
    file = existing(path, key, "It should be a CSV file with a header and an image a row.")
    if file.is_dir():
        raise ValueError(f"{key}: {file} is a folder, not a CSV file (for folders: data.source=image_folder)")
    root = file.parent if data.images is None else existing(data.images, "data.images")
    where = f"{key}: {file}"
    with open_rows(file, where) as (columns, rows):
        file_at = _column(columns, data.file_column, 0, where, "data.file_column")
        label_at = _column(columns, data.label_column, 1, where, "data.label_column")
        names, labels = _rows(rows, file_at, label_at, where)
    if missing := list(missing_below(root, names)):
        some = f"{len(missing):,} of {plural(len(names), 'image')} in {file}"
        are = "is" if len(missing) == 1 else "are"
        raise ValueError(f"{key}: {some} {are} not in {root}: {listed(missing)}")
    return Manifest(root, names, labels)


@contextmanager
def open_rows(file: Path, where: str, errors: str = "strict") -> Iterator[tuple[list[str], Any]]:
    """The columns of a CSV file and a csv.reader of the rows below; it tells by its header what separates them.

    errors: how bytes that are no UTF-8 are read. Raises ValueError, also for what is found while the rows are read.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig", errors=errors) as lines:
            header = lines.readline()
            delimiter = max(",;\t", key=header.count)
            columns = [column.strip() for column in next(csv.reader([header], delimiter=delimiter), [])]
            yield columns, csv.reader(lines, delimiter=delimiter)
    except UnicodeDecodeError:
        raise ValueError(f"{where} is not a text file in UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"{where} is not a CSV file: {error}") from None


def _column(columns: list[str], name: str | None, otherwise: int, where: str, key: str) -> int:
    if name is None and otherwise < len(columns):
        return otherwise
    if name not in columns:
        what = f"no column {name!r}" if name is not None else "no second column"
        raise ValueError(f"{where} has {what} ({key}); its columns are {', '.join(columns)}")
    return columns.index(name)


def _rows(rows, file_at: int, label_at: int, where: str) -> tuple[list[str], list[str]]:
    names, labels = [], []
    for row in rows:
        if not any(map(str.strip, row)):
            continue
        line = rows.line_num + 1  # the header was read before
        for at, what in ((file_at, "file name"), (label_at, "label")):
            if at >= len(row) or not row[at].strip():
                raise ValueError(f"{where} line {line} has no {what}")
        names.append(row[file_at].strip())
        labels.append(row[label_at].strip())
    if not names:
        raise ValueError(f"{where} has no rows")
    return names, labels


def missing_below(root: Path, names: Iterable[str]) -> Iterator[str]:
    """The names of files that are not there; a folder is listed once, instead of looking for each file."""

    @cache
    def content(folder: str) -> frozenset[str]:
        return frozenset(os.listdir(folder)) if os.path.isdir(folder) else frozenset()

    for name in names:
        folder, base = os.path.split(os.path.join(root, name))
        if base not in content(folder):
            yield name


def natural(text: str) -> list[tuple[bool, int, str]]:
    """A sorting key that puts "class 2" before "class 10"."""
    parts = re.split(r"([0-9]+)", text)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
