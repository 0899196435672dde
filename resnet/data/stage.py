"""A node's own copy of the images, whole or not there at all: made once, before they are opened, and found again."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from recipes.schema.data import CsvData, Data
from recipes.text import plural
from resnet.data.sources.csv_manifest import read_manifest
from resnet.data.sources.files import existing, expanded
from resnet.data.sources.image_folder import leads_up
from resnet.rundir.files import to_json

WHOLE = "whole.json"
"""Lies beside what was copied, once all of it is there."""
_THREADS = 16
_BLOCK = 8 << 20
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_LOOKS = 0.1


class Stopped(Exception):
    """A signal asked to stop before all was copied."""


class _File(NamedTuple):
    name: str
    """From the tree's root on."""
    size: int
    changed: int
    """Nanoseconds since 1970."""


class _Tree(NamedTuple):
    """What is to be copied of a folder."""

    root: Path
    folders: list[str]
    files: list[_File]

    def bytes(self) -> int:
        """On a disk that gives each file whole blocks."""
        return sum(-(-file.size // 4096) * 4096 for file in self.files)

    def name(self) -> str:
        """Of its copy: another one for other files, or changed ones."""
        digest = hashlib.sha256(os.fsencode(self.root))
        for file in sorted(self.files):
            digest.update(os.fsencode(file.name) + f"\0{file.size}\0{file.changed}\0".encode())
        return f"{self.root.name or 'root'}-{digest.hexdigest()[:12]}"


class _Wanted(NamedTuple):
    """Where a key's files lie in a tree ("": the tree itself), and which of its files are read; None: all."""

    root: Path
    below: str
    names: Iterable[str] | None


def stage(data: Data, stopped: Callable[[], bool], say: Callable[[str], None]) -> dict[str, str]:
    """Copy what the keys of `data` point at to `data.stage`, unless it lies there; returns by key where it is now.

    Only one process of a machine copies at a time; the others wait. Raises Stopped, and ValueError where there is no
    room (before anything is copied) or a file cannot be read.
    """
    place = _place(data)
    wanted = _wanted(data)
    trees = [_tree(root, _names(root, wanted.values())) for root in dict.fromkeys(w.root for w in wanted.values())]
    copies = {tree.root: place / tree.name() for tree in trees}
    if not all(_is_whole(copy) for copy in copies.values()):
        with _alone(place, stopped, say):
            _clean(place)
            missing = [tree for tree in trees if not _is_whole(copies[tree.root])]
            _check_room(missing, place, data)
            for tree in missing:
                _copy(tree, copies[tree.root], stopped, say)
    return {key: str(copies[root] / root.name / below).rstrip("/") for key, (root, below, _) in wanted.items()}


def conversions_of(path: Path) -> str | None:
    """Where what is made of a staged file or folder belongs: beside it. None for one that is not staged."""
    # A single file lies in a folder of its own there.
    return next((str(folder / "made") for folder in (*path.parents,)[:2] if (folder / WHOLE).is_file()), None)


def _place(data: Data) -> Path:
    assert data.stage is not None
    place = expanded(data.stage)
    if "$" in str(place):
        raise ValueError(f"data.stage={data.stage}: {place} names a variable that is not set on {socket.gethostname()}")
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"data.stage={data.stage}: cannot make {place} ({error.strerror})") from error
    return place


def _wanted(data: Data) -> dict[str, _Wanted]:
    """By key of `data`. Raises ValueError."""
    if isinstance(data, CsvData):
        return _wanted_of_csv(data)
    wanted = {}
    for key, path in data.paths().items():
        if path is not None:
            found = existing(path, f"data.{key}")
            wanted[key] = (
                _Wanted(found, "", None) if found.is_dir() else _Wanted(found.parent, found.name, [found.name])
            )
    return wanted


def _wanted_of_csv(data: CsvData) -> dict[str, _Wanted]:
    """The manifests, and the files that they name: others may lie beside them."""
    wanted, named = {}, []
    for key, path in (("train", data.train), ("val", data.val)):
        if path is not None:
            manifest = read_manifest(data, path, f"data.{key}")
            for name in manifest.names:
                if os.path.isabs(name) or os.path.normpath(name).startswith(".."):
                    raise ValueError(
                        f"data.stage cannot copy {name} of data.{key}={path}: it leads out of the images'"
                        f" folder {manifest.root}. Give the folder above all images as data.images"
                    )
            file = expanded(path)
            wanted[key] = _Wanted(file.parent, file.name, [file.name, *(manifest.names if not data.images else ())])
            named += manifest.names
    if data.images is not None:
        wanted["images"] = _Wanted(existing(data.images, "data.images"), "", named)
    return wanted


def _names(root: Path, wanted: Iterable[_Wanted]) -> list[str] | None:
    """Of the files of a tree, each once; None: all."""
    lists = [w.names for w in wanted if w.root == root]
    if None in lists:
        return None
    return [*dict.fromkeys(os.path.normpath(name) for names in lists for name in names or ())]


def _tree(root: Path, names: list[str] | None) -> _Tree:
    with ThreadPoolExecutor(_THREADS) as pool:
        if names is not None:
            return _Tree(root, [], list(pool.map(lambda name: _file(root, name), names)))
        folders, files = [], []
        level = [""]
        while level:
            found = list(pool.map(lambda folder: _look(root, folder), level))
            level = [folder for below, _ in found for folder in below]
            folders += level
            files += [file for _, here in found for file in here]
    return _Tree(root, folders, files)


def _look(root: Path, folder: str) -> tuple[list[str], list[_File]]:
    """Folders and files directly in one of the root's folders, without hidden ones, which no source reads."""
    folders, files = [], []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            name = os.path.join(folder, entry.name)
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                files.append(_file(root, name))
            elif not leads_up(entry, root / folder):
                folders.append(name)
    return folders, files


def _file(root: Path, name: str) -> _File:
    try:
        found = os.stat(root / name)
    except OSError as error:
        raise ValueError(f"data.stage: {root / name} cannot be read: {error.strerror}") from error
    return _File(name, found.st_size, found.st_mtime_ns)


def _is_whole(copy: Path) -> bool:
    return (copy / WHOLE).is_file()


@contextlib.contextmanager
def _alone(place: Path, stopped: Callable[[], bool], say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of the place, which the kernel frees when its holder dies."""
    lock, told = FileLock(place / ".stage.lock"), False
    while not lock.is_locked:
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            break
        if stopped():
            raise Stopped
        if not told:
            say(f"data.stage: waits for another process that copies to {place} on {socket.gethostname()}")
            told = True
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    try:
        yield
    finally:
        lock.release()


def _clean(place: Path) -> None:
    """Remove what copying left that was killed. The lock is held."""
    for left in place.glob("*-????????????.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def _check_room(trees: list[_Tree], place: Path, data: Data) -> None:
    needed = sum(tree.bytes() for tree in trees)
    if data.source == "huggingface":
        # Of which the library makes Arrow files as large, beside them.
        needed += sum(file.size for tree in trees for file in tree.files if file.name.endswith(".parquet"))
    count = sum(len(tree.files) + len(tree.folders) for tree in trees)
    there = os.statvfs(place)
    free = there.f_bavail * there.f_frsize
    if needed > free or (there.f_files and count > there.f_favail):
        more = f" and {there.f_favail:,} files" if there.f_files else ""
        raise ValueError(
            f"data.stage={data.stage}: {needed / 1e9:.2f} GB in {plural(count, 'file')} are to be copied, and {place} "
            f"on {socket.gethostname()} has room for {free / 1e9:.2f} GB{more}: make room, or leave data.stage away"
        )


def _copy(tree: _Tree, target: Path, stopped: Callable[[], bool], say: Callable[[str], None]) -> None:
    """Copy a tree under another name, and give it its own once it is whole and on the disk."""
    unfinished = target.with_name(f"{target.name}.tmp")
    start, total = time.monotonic(), sum(file.size for file in tree.files)
    copying = _Copying(tree, unfinished / tree.root.name)
    try:
        for folder in {"", *tree.folders, *(os.path.dirname(file.name) for file in tree.files)}:
            (copying.target / folder).mkdir(parents=True, exist_ok=True)
        last = start
        for done in copying.run(stopped):
            if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                rate = done / (last - start)
                say(
                    f"{socket.gethostname()}: copied {done / 1e9:.2f} of {total / 1e9:.2f} GB of {tree.root} to "
                    f"{target.parent}, {rate / 1e6:.0f} MB/s"
                )
        told = {"of": str(tree.root), "files": len(tree.files), "bytes": total, "time": time.time()}
        (unfinished / WHOLE).write_text(to_json(told))
        _flush(unfinished)
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    seconds = time.monotonic() - start
    say(f"{socket.gethostname()}: copied {total / 1e9:.2f} GB of {tree.root} to {target} in {seconds:.1f} s")


class _Copying:
    """The threads that copy the files of a tree, and the bytes that they have copied."""

    def __init__(self, tree: _Tree, target: Path) -> None:
        self.target, self._root = target, tree.root
        self._left, self._ended = iter(tree.files), threading.Event()
        self._done, self._lock = 0, threading.Lock()

    def run(self, stopped: Callable[[], bool]) -> Iterator[int]:
        """Yields, again and again until all is copied, the bytes so far. Raises Stopped and ValueError."""
        with ThreadPoolExecutor(_THREADS) as pool:
            threads = {pool.submit(self._work) for _ in range(_THREADS)}
            try:
                while threads:
                    ended, threads = wait(threads, _SECONDS_BETWEEN_LOOKS, FIRST_EXCEPTION)
                    for thread in ended:
                        thread.result()
                    if stopped():
                        raise Stopped
                    yield self._done
            finally:
                self._ended.set()

    def _work(self) -> None:
        for file in self._left:
            if self._ended.is_set():
                return
            source = self._root / file.name
            try:
                size = self._copy(source, self.target / file.name)
            except FileNotFoundError:
                raise ValueError(f"data.stage: {source} vanished while it was to be copied") from None
            except OSError as error:
                raise ValueError(f"data.stage: {source} cannot be copied: {error.strerror}") from error
            if size != file.size and not self._ended.is_set():
                raise ValueError(f"data.stage: {source} was changed while it was copied")

    def _copy(self, source: Path, target: Path) -> int:
        size = 0
        with open(source, "rb", buffering=0) as reader, open(target, "wb", buffering=0) as writer:
            while not self._ended.is_set() and (block := reader.read(_BLOCK)):
                writer.write(block)
                size += len(block)
                with self._lock:
                    self._done += len(block)
        return size


def _flush(folder: Path) -> None:
    """Have the disk of a folder hold what was written to it (on Linux): a name must not outlive a crash alone."""
    if sys.platform.startswith("linux"):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            ctypes.CDLL(None, use_errno=True).syncfs(descriptor)
        finally:
            os.close(descriptor)
