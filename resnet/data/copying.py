"""Copying the files of a folder in threads: all of them, as they were when they were looked up, and on the disk."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from resnet.data.sources.image_folder import leads_up

_THREADS = 16
_BLOCK = 8 << 20
SECONDS_BETWEEN_LOOKS = 0.1


class Stopped(Exception):
    """A signal asked to stop before all was copied."""


class File(NamedTuple):
    name: str
    """From the tree's root on."""
    size: int
    changed: int
    """Nanoseconds since 1970."""


class Tree(NamedTuple):
    """What is to be copied of a folder."""

    root: Path
    folders: list[str]
    files: list[File]

    def bytes(self) -> int:
        return sum(file.size for file in self.files)


def tree_of(root: Path, names: Iterable[str] | None) -> Tree:
    """A folder's files of these names; None: all, without hidden ones, which no source reads.

    Raises ValueError where one cannot be read.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        if names is not None:
            # A manifest may go through folders to others, and name a file in several ways.
            folders = sorted({os.path.dirname(name) for name in names} - {""})
            names = dict.fromkeys(os.path.relpath(os.path.join(root, name), root) for name in names)
            return Tree(root, folders, list(pool.map(lambda name: _file(root, name), names)))
        folders, files = [], []
        level = [""]
        while level:
            found = list(pool.map(lambda folder: _look(root, folder), level))
            level = [folder for below, _ in found for folder in below]
            folders += level
            files += [file for _, here in found for file in here]
    return Tree(root, folders, files)


def _look(root: Path, folder: str) -> tuple[list[str], list[File]]:
    """Folders and files directly in one of the root's folders; pipes, devices and links to nowhere are neither."""
    folders, files = [], []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            name = os.path.join(folder, entry.name)
            if entry.name.startswith("."):
                continue
            if entry.is_file():
                files.append(_file(root, name))
            elif entry.is_dir() and not leads_up(entry, root / folder):
                folders.append(name)
    return folders, files


def _file(root: Path, name: str) -> File:
    try:
        found = os.stat(root / name)
    except OSError as error:
        raise ValueError(f"data.stage: {root / name} cannot be read: {error.strerror}") from error
    return File(name, found.st_size, found.st_mtime_ns)


def is_copy(folder: Path, tree: Tree) -> bool:
    """Whether all of a tree lies in a folder, by name and size."""
    top = str(folder)
    try:
        return all(os.stat(os.path.join(top, file.name)).st_size == file.size for file in tree.files) and all(
            os.path.isdir(os.path.join(top, name)) for name in tree.folders
        )
    except OSError:
        return False


class Copying:
    """The threads that copy the files of a tree, and the bytes that they have copied."""

    def __init__(self, tree: Tree, target: Path) -> None:
        self._target, self._tree = target, tree
        self._left, self._ended = iter(tree.files), threading.Event()
        self._done, self._lock = 0, threading.Lock()

    def run(self, stopped: Callable[[], bool]) -> Iterator[int]:
        """Yields, again and again until all is copied, the bytes so far. Raises Stopped, ValueError and OSError."""
        for folder in {"", *self._tree.folders, *(os.path.dirname(file.name) for file in self._tree.files)}:
            (self._target / folder).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(_THREADS) as pool:
            threads = {pool.submit(self._work) for _ in range(_THREADS)}
            try:
                while threads:
                    ended, threads = wait(threads, SECONDS_BETWEEN_LOOKS, FIRST_EXCEPTION)
                    for thread in ended:
                        thread.result()
                    if stopped():
                        raise Stopped
                    yield self._done
            finally:
                self._ended.set()

    def _work(self) -> None:
        root = self._tree.root
        for file in self._left:
            if self._ended.is_set():
                return
            try:
                self._copy(root / file.name, self._target / file.name)
                changed = _file(root, file.name) != file
            except FileNotFoundError:
                raise ValueError(f"data.stage: {root / file.name} vanished while it was to be copied") from None
            except OSError as error:
                raise ValueError(f"data.stage: {root / file.name} cannot be copied: {error.strerror}") from error
            if changed:
                raise ValueError(f"data.stage: {root / file.name} was changed while it was copied")

    def _copy(self, source: Path, target: Path) -> None:
        with open(source, "rb", buffering=0) as reader, open(target, "wb", buffering=0) as writer:
            while not self._ended.is_set() and (block := reader.read(_BLOCK)):
                left = memoryview(block)
                while left:
                    # Where the disk is full a part of it is written, without an error.
                    left = left[writer.write(left) :]
                with self._lock:
                    self._done += len(block)


def flush(folder: Path) -> None:
    """Have the disk of a folder hold what was written to it (on Linux): a name must not outlive a crash alone.

    Raises OSError where the disk could not.
    """
    if sys.platform.startswith("linux"):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
        finally:
            os.close(descriptor)
