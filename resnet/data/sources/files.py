"""What sources of files on disk share: paths as users write them, and images held as packed file names."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

WHOLE = "whole.json"
"""Lies beside what `resnet.data.stage` copied."""


class Wanted(NamedTuple):
    """The files of a key: where they lie in a folder ("": the folder itself), and which are read; None: all."""

    root: Path
    below: str
    names: Iterable[str] | None


def expanded(path: str) -> Path:
    """An absolute path, with ~ and $VARIABLES replaced."""
    return Path(os.path.abspath(os.path.expanduser(os.path.expandvars(path))))


def existing(path: str, key: str, hint: str = "") -> Path:
    """The expanded path, which is there; else ValueError saying what was looked for, and the hint."""
    absolute = expanded(path)
    if not absolute.exists():
        raise ValueError(f"{key}={path}: there is no {absolute}. {hint}".rstrip())
    return absolute


def conversions_of(path: Path) -> str | None:
    """Where what is made of a staged file or folder belongs: beside it. None for one that is not staged."""
    # A single file lies in a folder of its own there.
    return next((str(folder / "made") for folder in (*path.parents,)[:2] if (folder / WHOLE).is_file()), None)


class Names:
    """Many names in one buffer: as separate str they would be copied page by page into each forked worker, as their
    reference counts are touched."""

    def __init__(self, names: Iterable[str]) -> None:
        joined, ends = bytearray(), array("q", [0])
        for name in names:
            joined += os.fsencode(name)
            ends.append(len(joined))
        self._joined = np.frombuffer(joined, dtype=np.uint8)
        self._ends = np.frombuffer(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        assert 0 <= index < len(self), index
        return os.fsdecode(self._joined[self._ends[index] : self._ends[index + 1]].tobytes())


class Files:
    """A source (see `source.Source`) of image files below a folder ("": their names are whole paths)."""

    def __init__(self, root: str | Path, names: Iterable[str] | Names, labels: np.ndarray, classes: list[str]) -> None:
        self._root = str(root)
        self.names = names if isinstance(names, Names) else Names(names)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.classes = classes
        assert len(self.names) == len(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        with open(self.describe(index), "rb") as file:
            return file.read()

    def describe(self, index: int) -> str:
        return os.path.join(self._root, self.names[index])
