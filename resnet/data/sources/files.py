"""What sources of files on disk share: paths as users write them, and images held as packed file names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def expanded(path: str) -> Path:
    """An absolute path, with ~ and $VARIABLES replaced."""
    return Path(os.path.abspath(os.path.expanduser(os.path.expandvars(path))))


def existing(path: str, key: str, hint: str = "") -> Path:
    """The expanded path, which is there; else ValueError saying what was looked for, and the hint."""
    absolute = expanded(path)
    if not absolute.exists():
        raise ValueError(f"{key}={path}: there is no {absolute}. {hint}".rstrip())
    return absolute


class Files:
    """A source (see `source.Source`) of image files below a folder.

    The names lie in one buffer: a million str would be copied page by page into each forked worker, as their reference
    counts are touched.
    """

    def __init__(self, root: Path, names: Sequence[str], labels: np.ndarray, classes: list[str]) -> None:
        assert len(names) == len(labels)
        encoded = [os.fsencode(name) for name in names]
        self._root = str(root)
        self._joined = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([0] + [len(name) for name in encoded], dtype=np.int64)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.classes = classes

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        with open(self.describe(index), "rb") as file:
            return file.read()

    def describe(self, index: int) -> str:
        assert 0 <= index < len(self), index
        name = self._joined[self._ends[index] : self._ends[index + 1]].tobytes()
        return os.path.join(self._root, os.fsdecode(name))
