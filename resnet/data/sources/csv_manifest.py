"""CSV manifests: a header, then an image's file name and its label a row."""

from __future__ import annotations

import csv
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recipes.schema.data import CsvData
from recipes.text import listed, plural
from resnet.data.sources.files import (
    RULES,
    Files,
    Lister,
    Place,
    Seen,
    Wanted,
    digest_of_texts,
    existing,
    expanded,
    lists_itself,
)


class Manifest(NamedTuple):
    """A manifest's images, below the folder `root`."""

    root: Path
    names: list[str]
    labels: list[str]
    seen: Seen


def open_csv(data: CsvData, lister: Lister = lists_itself) -> tuple[Files, Files | None]:
    """Training and validation images; the second is None where `val` is null."""
    train = lister("data.train", _place(data, data.train), lambda: _files(data, data.train, "data.train"))
    if (path := data.val) is None:
        return train, None
    place = _place(data, path, train.classes)
    return train, lister("data.val", place, lambda: _files(data, path, "data.val", train.classes))


def _place(data: CsvData, path: str, classes: list[str] | None = None) -> Place:
    """What a listing leans on: the CSV file, its columns, the images' folder, and the training images' classes."""
    root = expanded(path).parent if data.images is None else expanded(data.images)
    columns = {"file_column": data.file_column, "label_column": data.label_column}
    terms = {"source": "csv", "rules": RULES, "csv": str(expanded(path)), "images": str(root)}
    terms |= {key: name for key, name in columns.items() if name is not None}
    return Place(root, terms | ({} if classes is None else {"classes": digest_of_texts(classes)}), inside=False)


def _files(data: CsvData, path: str, key: str, classes: list[str] | None = None) -> Files:
    manifest = read_manifest(data, path, key)
    if classes is None:
        classes = sorted(set(manifest.labels), key=natural)
    index = {name: number for number, name in enumerate(classes)}
    if strange := sorted(set(manifest.labels) - set(classes)):
        raise ValueError(f"{key}: labels that the training images do not have: {listed(strange)}")
    files = Files(manifest.root, manifest.names, np.array([index[label] for label in manifest.labels]), classes)
    files.seen = manifest.seen
    return files


def read_manifest(data: CsvData, path: str, key: str) -> Manifest:
    """What the CSV file of a key lists. Raises ValueError, also where images of it are not there."""
    file = existing(path, key, "It should be a CSV file with a header and an image a row.")
    if file.is_dir():
        raise ValueError(f"{key}: {file} is a folder, not a CSV file (for folders: data.source=image_folder)")
    root = file.parent if data.images is None else existing(data.images, "data.images")
    where = f"{key}: {file}"
    seen = Seen(root)
    seen.note(str(file))
    with open_rows(file, where) as (columns, rows):
        file_at, label_at = _columns(columns, data, where)
        names, labels = _rows(rows, file_at, label_at, where)
    if missing := list(missing_below(root, names, seen)):
        some = f"{len(missing):,} of {plural(len(names), 'image')} in {file}"
        are = "is" if len(missing) == 1 else "are"
        raise ValueError(f"{key}: {some} {are} not in {root}: {listed(missing)}")
    return Manifest(root, names, labels, seen)


def wanted_of_csv(data: CsvData) -> dict[str, Wanted]:
    """By key the manifests, and the files that they name: others may lie beside them. Raises ValueError."""
    wanted, named = {}, []
    for key, path in (("train", data.train), ("val", data.val), ("test", data.test)):
        if path is not None:
            manifest = read_manifest(data, path, f"data.{key}")
            for name in manifest.names:
                _check_inside(manifest.root, name, f"data.{key}={path}")
            file = expanded(path)
            wanted[key] = Wanted(file.parent, file.name, [file.name, *(manifest.names if not data.images else ())])
            named += manifest.names
    if data.images is not None:
        wanted["images"] = Wanted(existing(data.images, "data.images"), "", named)
    return wanted


def _check_inside(root: Path, name: str, where: str) -> None:
    if os.path.isabs(name):
        raise ValueError(
            f"data.stage cannot copy {name} of {where}: a whole path says where the image is now. Let the names start "
            f"from {root}, or from the folder that you give as data.images"
        )
    if not Path(os.path.normpath(root / name)).is_relative_to(root):
        raise ValueError(
            f"data.stage cannot copy {name} of {where}: it leads out of the images' folder {root}. "
            "Give the folder above all images as data.images, and let the names start from it"
        )


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


def _columns(columns: list[str], data: CsvData, where: str) -> tuple[int, int]:
    """Where the file names and the labels are."""
    asked = {"data.file_column": data.file_column, "data.label_column": data.label_column}
    for key, name in asked.items():
        if name is not None and name not in columns:
            raise ValueError(f"{where} has no column {name!r} ({key}); its columns are {', '.join(columns)}")
    label_at = called_label(columns) if data.label_column is None else columns.index(data.label_column)
    file_at = int(label_at == 0) if data.file_column is None else columns.index(data.file_column)
    if data.label_column is None and label_at in (None, file_at):
        label_at = file_at + 1
    assert label_at is not None
    if max(file_at, label_at) >= len(columns):
        raise ValueError(f"{where} has no second column (data.label_column); its columns are {', '.join(columns)}")
    return file_at, label_at


def called_label(columns: list[str]) -> int | None:
    """Where the column called label or labels is; None if there is none, or there are several."""
    found = [at for at, column in enumerate(columns) if column.lower() in ("label", "labels")]
    return found[0] if len(found) == 1 else None


def _rows(rows, file_at: int, label_at: int, where: str) -> tuple[list[str], list[str]]:
    names, labels, lines = [], [], array("q")
    for row in rows:
        if not any(map(str.strip, row)):
            continue
        line = rows.line_num + 1  # the header was read before
        for at, what in ((file_at, "file name"), (label_at, "label")):
            if at >= len(row) or not row[at].strip():
                raise ValueError(f"{where} line {line} has no {what}")
        names.append(row[file_at].strip())
        labels.append(row[label_at].strip())
        lines.append(line)
    if not names:
        raise ValueError(f"{where} has no rows")
    if len(set(names)) < len(names):
        _check_repeated(names, labels, lines, where)
    return names, labels


def _check_repeated(names: list[str], labels: list[str], lines: Sequence[int], where: str) -> None:
    """Raise ValueError for files under two labels; under one they may be listed twice, to be drawn more often."""
    first: dict[str, int] = {}
    found = {}
    for at, name in enumerate(names):
        before = first.setdefault(name, at)
        if labels[at] != labels[before]:
            found.setdefault(name, (before, at))
    if not found:
        return
    texts = [
        f"{name} is {labels[before]} (line {lines[before]}) and {labels[at]} (line {lines[at]})"
        for name, (before, at) in found.items()
    ]
    files = plural(len(found), "file")
    raise ValueError(f"{where} lists {files} under two labels: {listed(texts, 3)}. Keep one row of each, or none")


def missing_below(root: Path, names: Iterable[str], seen: Seen | None = None) -> Iterator[str]:
    """The names of files that are not there; a folder is listed once, instead of looking for each file.

    seen: takes note of the folders.
    """

    @cache
    def content(folder: str) -> frozenset[str]:
        if not os.path.isdir(folder):
            return frozenset()
        if seen is not None:
            seen.note(folder)
        return frozenset(os.listdir(folder))

    for name in names:
        folder, base = os.path.split(os.path.join(root, name))
        if base not in content(folder):
            yield name


def natural(text: str) -> list[tuple[bool, int, str]]:
    """A sorting key that puts "class 2" before "class 10"."""
    parts = re.split(r"([0-9]+)", text)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
