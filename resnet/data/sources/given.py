"""Images that a user points at: files, folders, patterns, lists and parquet files, with labels where there are some."""

from __future__ import annotations

import bisect
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from recipes.schema.data import CsvData, Data, HuggingFaceData
from recipes.text import listed, plural
from resnet.data.sources.files import Files, Names, expanded
from resnet.data.sources.huggingface import open_given_rows
from resnet.data.sources.image_folder import ARRAYS, EXTENSIONS, is_image, leads_up
from resnet.data.sources.lists import Columns, Labels, read_list

LISTS = (".csv", ".tsv", ".txt", ".lst", ".list")
"""Endings of lists of images."""


class _Part(NamedTuple):
    """What one of the paths stands for; its labels are indices into its own `source.classes`, -1 for none."""

    source: Any
    ids: Any
    """The name of each image (n,), to be indexed; None: its `describe`."""


class Given:
    """A source (see `source.Source`) of images with or without labels.

    labels: int64 (n,), -1 for an image without one, or of a class that `classes` lacks.
    """

    def __init__(self, parts: Sequence[_Part], classes: list[str] | None, notes: list[str]) -> None:
        self._parts = parts
        self._starts = [0, *np.cumsum([len(part.source) for part in parts]).tolist()]
        texts = dict.fromkeys(text for part in parts for text in part.source.classes)
        self.numeric = classes is not None and _are_numbers(texts, classes)
        """Whether the labels are positions in the list of classes."""
        self.classes = list(texts) if classes is None else classes
        self.notes = notes
        """What the user should know of how things were matched, a line each."""
        number = {name: at for at, name in enumerate(self.classes)}
        if self.numeric:
            number = {text: int(text) for text in texts if int(text) < len(self.classes)}
            notes.append("the labels are numbers, taken as positions in the list of classes, from 0")
        self.unmatched: dict[str, int] = {}
        """Names of classes in the data that `classes` lacks, with the number of their images."""
        self.labels = np.concatenate([self._number(part.source, number) for part in parts])
        self.ids = _Ids(self)

    def _number(self, source: Any, number: dict[str, int]) -> np.ndarray:
        """A part's labels as indices into `classes`; what is in none of them is counted."""
        counts = np.bincount(source.labels[source.labels >= 0], minlength=len(source.classes)).tolist()
        for text, count in zip(source.classes, counts, strict=True):
            if text not in number and count:
                self.unmatched[text] = self.unmatched.get(text, 0) + count
        return np.array([*(number.get(text, -1) for text in source.classes), -1], dtype=np.int64)[source.labels]

    def _at(self, index: int) -> tuple[_Part, int]:
        assert 0 <= index < len(self), index
        which = bisect.bisect_right(self._starts, index) - 1
        return self._parts[which], index - self._starts[which]

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, index: int) -> bytes | torch.Tensor:
        """The bytes of an image's file. Raises OSError or arrays.BrokenImage."""
        part, at = self._at(index)
        return part.source.read(at)

    def describe(self, index: int) -> str:
        """The image's file, or its row."""
        part, at = self._at(index)
        return part.source.describe(at)

    def label_name(self, index: int) -> str | None:
        """An image's label by name, also one that `classes` lacks; None where it has none."""
        if self.numeric and self.labels[index] >= 0:
            return self.classes[self.labels[index]]
        part, at = self._at(index)
        label = int(part.source.labels[at])
        return None if label < 0 else part.source.classes[label]


class _Ids(Sequence[str]):
    """What the user calls each image: its path from the folder that was given on, its text in a list, or its row."""

    def __init__(self, given: Given) -> None:
        self._given = given

    def __len__(self) -> int:
        return len(self._given)

    def __getitem__(self, index: int) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        if index >= len(self):
            raise IndexError(index)
        part, at = self._given._at(index)
        return part.source.describe(at) if part.ids is None else str(part.ids[at])


def open_given(
    paths: str | Path | Iterable[str | Path],
    classes: list[str] | None = None,
    columns: tuple[str | None, str | None] | None = None,
    images: str | Path | None = None,
    like: Data | None = None,
) -> Given:
    """Images in the order of the paths, each of which is an image, a folder of images (those below in sorted order,
    labelled by the names of its folders), a pattern as `photos/**/*.jpg`, a CSV file (a file name and perhaps a label a
    row), a .txt with a path a line, a .parquet file, or a folder of these or of save_to_disk.

    classes: of the network: labels become indices into them, by name, or by number where all are numbers, some of them
    below their count, and none is a name. None: the data's own. columns: of a CSV file, those of file names and labels,
    by name or position from 1. images: folder that the names in a list start from; None: the list's.
    like: a recipe's data, whose columns and split are taken where these have them.
    Raises ValueError for paths that are not there and lists that cannot be read. A listed file that is not there is an
    image that cannot be read.
    """
    given = [os.path.expanduser(path) for path in as_paths(paths)]
    if not given:
        raise ValueError("no images are given")
    names = [name for path in given for name in _expanded(path)]
    root = None if images is None else expanded(str(images))
    if root is not None and not root.is_dir():
        raise ValueError(f"there is no folder {root} of images")
    notes: list[str] = []
    opening = _Opening(Columns(*(columns or ())), root, like, alone=names == given and len(names) == 1, notes=notes)
    return Given(list(opening.parts(names)), classes, notes)


def as_paths(given: Any) -> list[str]:
    """A path, or several, as a list. Raises ValueError for images themselves."""
    several = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    if wrong := [one for one in several if not isinstance(one, (str, os.PathLike))]:
        kind = type(wrong[0]).__name__
        raise ValueError(f"images are given as paths (of files, folders or lists), and this is of type {kind}")
    return [os.fspath(one) for one in several]


def files_read(paths: Iterable[str | Path], source: Any = None) -> Iterator[str]:
    """The files that images come from: what the paths are or match, parquet files below folders, and the images.

    source: opened from the paths; None: their images do not matter.
    """
    for name in (name for path in paths for name in _expanded(os.path.expanduser(path))):
        if not os.path.isdir(name):
            yield name
        elif _holds_rows(Path(name)):
            yield from map(str, Path(name).rglob("*.parquet"))
    if source is not None:
        yield from map(source.describe, range(len(source)))


def files_of(data: Data, source: Any = None) -> Iterator[str]:
    """The same of a recipe's data."""
    places = (data.train, data.val, *data.paths().values())
    return files_read([str(expanded(path)) for path in places if path], source)


class _Opening(NamedTuple):
    """What all paths are opened by."""

    columns: Columns
    images: Path | None
    like: Data | None
    alone: bool
    """Whether there is one path: images in it are called by their names from there on."""
    notes: list[str]

    def parts(self, names: list[str]) -> Iterator[_Part]:
        """A part for each path; image files side by side are one."""
        files: list[str] = []
        for name in names:
            if not os.path.exists(name):
                raise ValueError(f"there is no {name}: give a folder of images, or an image")
            if not os.path.isdir(name) and not name.lower().endswith((*LISTS, ".parquet")):
                files.append(name)
                continue
            if files:
                yield self._files(files)
                files = []
            yield self._part(name)
        if files:
            yield self._files(files)

    def _files(self, files: list[str]) -> _Part:
        source = Files("", files, np.full(len(files), -1), [])
        return _Part(source, [os.path.basename(files[0])] if self.alone else source.names)

    def _part(self, name: str) -> _Part:
        soft = Columns(self.like.file_column, self.like.label_column) if isinstance(self.like, CsvData) else Columns()
        if name.lower().endswith(LISTS) and not os.path.isdir(name):
            read = read_list(Path(name), self.columns, self.images, soft)
            self.notes.extend(read.notes)
            return _Part(read.files, read.ids)
        if _holds_rows(Path(name)):
            rows = open_given_rows(name, self.like if isinstance(self.like, HuggingFaceData) else None)
            return _Part(rows, range(len(rows)))
        source = _labelled_folder(name)
        return _Part(source, source.names if self.alone else None)


def _expanded(path: str) -> list[str]:
    """What a pattern matches, as in a shell, of which images are taken, and folders that `**` did not look into."""
    if os.path.exists(path) or not glob.has_magic(path):
        return [path]
    found = sorted(glob.glob(path, recursive=True))
    if not found:
        raise ValueError(f"nothing matches {path}")
    folders = set() if "**" in path else {name for name in found if os.path.isdir(name)}
    return [name for name in found if name in folders or is_image(os.path.basename(name))] or found


def _holds_rows(path: Path) -> bool:
    """Whether it is a parquet file, or a folder of these or of save_to_disk."""
    if path.is_file() or any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return True
    return next(images_of(path), None) is None and next(path.rglob("*.parquet"), None) is not None


def _labelled_folder(folder: str) -> Files:
    """The images below a folder, each labelled by the first folder of its name."""
    labels = Labels()

    def noted(endings: tuple[str, ...]) -> Iterator[str]:
        for name in images_of(folder, endings=endings):
            labels.add(name.partition("/")[0] if "/" in name else "")
            yield name

    names = Names(noted(EXTENSIONS))
    if not len(names):
        names = Names(noted(ARRAYS))
    if not len(names):
        raise ValueError(f"no images in {folder} (files that end in {', '.join(EXTENSIONS)})")
    return Files(folder, names, *labels.read(key=str))


def images_of(folder: str | Path, prefix: str = "", endings: tuple[str, ...] = EXTENSIONS) -> Iterator[str]:
    """Names, from a folder on and in sorted order, of the images in it and below; what is hidden is passed over."""
    here = os.path.join(folder, prefix)
    with os.scandir(here) as entries:
        found = sorted(
            f"{entry.name}/" if entry.is_dir() else entry.name
            for entry in entries
            if not entry.name.startswith(".") and not (entry.is_dir() and leads_up(entry, here))
        )
    for name in found:
        if name.endswith("/"):
            yield from images_of(folder, prefix + name, endings)
        elif is_image(name, endings):
            yield prefix + name


def _are_numbers(texts: Iterable[str], classes: list[str]) -> bool:
    """Whether labels are indices of the classes rather than names."""
    texts = list(texts)
    return (
        bool(texts)
        and not set(texts) & set(classes)
        and all(text.isdecimal() for text in texts)
        and any(int(text) < len(classes) for text in texts)
    )


def unmatched_text(given: Given) -> str:
    """What to say of the classes that the data has and the network has not: which, and of how many images."""
    counts = listed([f"{name} ({count:,})" for name, count in given.unmatched.items()])
    if not (given.labels >= 0).any():
        return f"no class of the data is one of the network's: {counts}"
    one = len(given.unmatched) == 1
    numbers = f"; numbers are positions from 0 to {len(given.classes) - 1}" if given.numeric else ""
    what = f"{plural(len(given.unmatched), 'class')} of the data {'is' if one else 'are'}"
    return f"{what} none of the network's: {counts}{numbers}"
