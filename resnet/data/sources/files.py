"""What sources of files on disk share: paths as users write them, and images held as packed file names."""

from __future__ import annotations

import hashlib
import json
import os
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

THREADS = 16
"""That look at a file system, which may be far away."""
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


Stamp = tuple[int, ...]
"""Of a folder or file: when it was last changed, in nanoseconds, its inode, when that was last changed, and its size.
The first is set back by what copies a folder with its times, the third by nothing."""


class Seen:
    """The folders and files that a listing looked at, each as it was just before: by these it is told to hold still."""

    def __init__(self, root: str | Path) -> None:
        self.root, self.began = str(root), time.time_ns()
        self.stamps: dict[str, Stamp] = {}
        """By path, whole or from `root` on."""

    def note(self, path: str) -> None:
        if path not in self.stamps:
            self.stamps[path] = stamp(self.root, path)


def stamp(root: str, path: str) -> Stamp:
    """Raises OSError."""
    found = os.stat(os.path.join(root, path))
    return found.st_mtime_ns, found.st_ino, found.st_ctime_ns, found.st_size


def hold(root: str, stamps: Mapping[str, Stamp]) -> bool:
    """Whether all that was seen is as it was."""

    def is_same(path: str) -> bool:
        try:
            return stamp(root, path) == stamps[path]
        except (OSError, ValueError):
            return False

    if len(stamps) < 2 * THREADS:
        return all(map(is_same, stamps))
    with ThreadPoolExecutor(THREADS) as pool:
        return all(pool.map(is_same, stamps))


class Names:
    """Many names in one buffer: as separate str they would be copied page by page into each forked worker, as their
    reference counts are touched."""

    def __init__(self, names: Iterable[str]) -> None:
        joined, ends = bytearray(), array("q", [0])
        for name in names:
            joined += os.fsencode(name)
            ends.append(len(joined))
        self.joined: np.ndarray = np.frombuffer(joined, dtype=np.uint8)
        """The bytes of all names, one behind the other."""
        self.ends: np.ndarray = np.frombuffer(ends, dtype=np.int64)
        """0, and where each name ends."""

    @classmethod
    def of(cls, joined: np.ndarray, ends: np.ndarray) -> Names:
        names = cls(())
        names.joined, names.ends = joined, ends
        return names

    @classmethod
    def chained(cls, parts: Sequence[Names]) -> Names:
        """The names of several, one behind the other."""
        starts = np.cumsum([0, *(len(part.joined) for part in parts)])
        ends = [part.ends[1:] + start for part, start in zip(parts, starts[:-1], strict=True)]
        joined = [part.joined for part in parts] or [np.empty(0, dtype=np.uint8)]
        return cls.of(np.concatenate(joined), np.concatenate([starts[:1], *ends]))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:
        assert 0 <= index < len(self), index
        return os.fsdecode(self.joined[self.ends[index] : self.ends[index + 1]].tobytes())


class Files:
    """A source (see `source.Source`) of image files below a folder ("": their names are whole paths)."""

    seen: Seen | None = None
    """What the listing looked at; None: that is not known."""

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

    def at(self, root: str | Path) -> Files:
        """The same images below another folder."""
        return Files(root, self.names, self.labels, self.classes)


RULES = "1"
"""Of what is taken for an image, and in which order, as part of a place's terms: another number where a listing would
find others than before."""


class Place(NamedTuple):
    """What a listing leans on."""

    root: Path
    terms: Mapping[str, str]
    """Keys and values that, with what lies there, make it what it is."""
    inside: bool = True
    """Whether all names lead to below the root."""


def digest_of_texts(texts: Iterable[str]) -> str:
    return hashlib.sha256(json.dumps([*texts]).encode()).hexdigest()


Lister = Callable[[str, Place, Callable[[], Files]], Files]
"""How a source comes to the files of a key of `data` (`data.train`): by its own listing, which is given, by an index of
an earlier one, or by what another rank has told (see `index`)."""


def lists_itself(key: str, place: Place, listing: Callable[[], Files]) -> Files:
    return listing()
