"""A node's own copy of the images, whole or not there at all: made once, before they are opened, and found again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from recipes.schema.data import Data
from recipes.text import plural
from resnet.data.copying import SECONDS_BETWEEN_LOOKS, Copying, Stopped, Tree, flush, is_copy, tree_of
from resnet.data.sources.files import WHOLE, Wanted, expanded
from resnet.data.sources.registry import wanted
from resnet.rundir.files import to_json

_OWN = ".stage"
"""In the place of the copies: the lock, and what is not whole yet."""
_SECONDS_BETWEEN_LINES = 10.0


def stage(data: Data, stopped: Callable[[], bool], say: Callable[[str], None]) -> dict[str, str]:
    """Copy what the keys of `data` point at to `data.stage`, unless it lies there; returns by key where it is now.

    Only one process of a machine copies at a time; the others wait. Raises Stopped, and ValueError where there is no
    room (before anything is copied), a file cannot be read, or the place cannot be written to.
    """
    place, files = _place(data), wanted(data)
    roots = dict.fromkeys(each.root for each in files.values())
    trees = [tree_of(root, _names(root, files.values(), place, data)) for root in roots]
    copies = {tree.root: place / _name(tree) for tree in trees}
    try:
        if any(not _is_whole(copies[tree.root], tree) for tree in trees):
            with _alone(place, stopped, say):
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(place / _OWN / "unfinished")  # of who was killed
                missing = [tree for tree in trees if not _is_whole(copies[tree.root], tree)]
                for copy in (copies[tree.root] for tree in missing):
                    if copy.exists():
                        say(f"{socket.gethostname()}: {copy} has lost some of its files: it is copied anew")
                        shutil.rmtree(copy)
                _check_room(missing, place, data)
                for tree in missing:
                    _copy(tree, copies[tree.root], stopped, say)
        else:
            say(f"{socket.gethostname()}: reads the copies in {place}")
    except OSError as error:
        where = error.filename or place
        raise ValueError(
            f"data.stage={data.stage}: {where} on {socket.gethostname()} cannot be written to ({error.strerror})"
        ) from error
    return {key: str(copies[root] / root.name / below).rstrip("/") for key, (root, below, _) in files.items()}


def _place(data: Data) -> Path:
    assert data.stage is not None
    place = expanded(data.stage)
    if "$" in str(place):
        raise ValueError(f"data.stage={data.stage} names a variable that is not set on {socket.gethostname()}")
    return place


def _names(root: Path, files: Iterable[Wanted], place: Path, data: Data) -> list[str] | None:
    """Of the files that are read below a root; None: all. Raises ValueError where the copies would be among them."""
    lists = [each.names for each in files if each.root == root]
    if None not in lists:
        return [name for names in lists for name in names or ()]
    if Path(os.path.realpath(place)).is_relative_to(os.path.realpath(root)):
        raise ValueError(f"data.stage={data.stage} lies in {root}, which is to be copied: choose a folder outside it")
    return None


def _name(tree: Tree) -> str:
    """Of a tree's copy: another one for other files, or changed ones."""
    digest = hashlib.sha256(os.fsencode(tree.root))
    for file in sorted(tree.files):
        digest.update(os.fsencode(file.name) + f"\0{file.size}\0{file.changed}\0".encode())
    for folder in sorted(tree.folders):
        digest.update(os.fsencode(folder) + b"/\0")
    return f"{tree.root.name or 'root'}-{digest.hexdigest()[:12]}"


def _is_whole(copy: Path, tree: Tree) -> bool:
    """Whether it was copied to its end, and is all there still: folders for temporary files are cleaned by age."""
    return (copy / WHOLE).is_file() and is_copy(copy / tree.root.name, tree)


@contextlib.contextmanager
def _alone(place: Path, stopped: Callable[[], bool], say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of the place, which the kernel frees when its holder dies."""
    (place / _OWN).mkdir(parents=True, exist_ok=True)
    lock, told = FileLock(place / _OWN / "lock"), False
    while not lock.is_locked:
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            break
        if stopped():
            raise Stopped
        if not told:
            say(f"data.stage: waits for another process that copies to {place} on {socket.gethostname()}")
            told = True
        time.sleep(SECONDS_BETWEEN_LOOKS)
    try:
        yield
    finally:
        lock.release()


def _check_room(trees: list[Tree], place: Path, data: Data) -> None:
    # Disks give each file whole blocks.
    needed = sum(-(-file.size // 4096) * 4096 for tree in trees for file in tree.files)
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


def _copy(tree: Tree, target: Path, stopped: Callable[[], bool], say: Callable[[str], None]) -> None:
    """Copy a tree under another name, and give it its own once it is whole and on the disk."""
    unfinished = target.parent / _OWN / "unfinished"
    start, total = time.monotonic(), tree.bytes()
    try:
        last = start
        for done in Copying(tree, unfinished / tree.root.name).run(stopped):
            if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                rate = done / (last - start)
                say(
                    f"{socket.gethostname()}: copied {done / 1e9:.2f} of {total / 1e9:.2f} GB of {tree.root} to "
                    f"{target.parent}, {rate / 1e6:.0f} MB/s"
                )
        told = {"of": str(tree.root), "files": len(tree.files), "bytes": total, "time": time.time()}
        (unfinished / WHOLE).write_text(to_json(told))
        flush(unfinished)
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    seconds = time.monotonic() - start
    say(f"{socket.gethostname()}: copied {total / 1e9:.2f} GB of {tree.root} to {target} in {seconds:.1f} s")
