"""What commands that take long tell on stderr, and how they write their file."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

from recipes.text import format_duration
from resnet.rundir.files import open_atomic

_REDRAW_SECONDS, _LINE_SECONDS = 0.2, 30.0

Item = TypeVar("Item")


def counted(
    items: Iterable[Item],
    total: int,
    quiet: bool = False,
    weight: Callable[[Item], int] = lambda _: 1,
    done: int = 0,
    what: str = "images",
) -> Iterator[Item]:
    """The items as they come; a count of their images is kept on a terminal, and told every 30 s elsewhere.

    quiet: tell nothing, since something else is written to the same terminal. weight: images of an item. done: images
    that were there before.
    """
    live = sys.stderr.isatty()
    start = last = time.monotonic()
    count = drawn = 0
    try:
        for item in items:
            yield item
            count += weight(item)
            now = time.monotonic()
            if quiet or now - last < (_REDRAW_SECONDS if live else _LINE_SECONDS):
                continue
            last, rate = now, max(count, 1) / (now - start)
            left = format_duration((total - done - count) / rate)
            text = f"{done + count:,} of {total:,} {what}  {rate:,.0f}/s  ETA {left}"
            sys.stderr.write(f"\r{text:{drawn}}" if live else f"{text}\n")
            sys.stderr.flush()
            drawn = len(text)
    finally:
        if live and drawn:
            sys.stderr.write("\r" + " " * drawn + "\r")


def check_output(path: Path, option: str, endings: Sequence[str] = ()) -> None:
    """Raise ValueError now rather than after an hour's work. option: as the user calls it, for the message.

    endings: one of which a file's name has, as they say what is in it; empty: any may.
    """
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder: give a file")
    if endings and _is_replaced(path) and not path.name.endswith(tuple(endings)):
        raise ValueError(f"{option} {path}: give a file that ends in {' or '.join(endings)}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{option} {path}: there is no folder {path.absolute().parent}")
    if _is_replaced(path):
        folder = os.path.dirname(os.path.realpath(path))
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise ValueError(f"{option} {path}: no file can be made in {folder}: {error.strerror}") from None


def refuse_input(path: Path, option: str, inputs: Iterable[str | Path]) -> None:
    """Raise ValueError where an output is one of the files that are read, by whatever name.

    inputs: files, and folders of which all is read; gone through only where `path` is there.
    """
    if path.is_file() and any(_holds(name, path) for name in inputs):
        raise ValueError(f"{option} {path} is read here, and would be written over: give another name")


def _holds(name: str | Path, path: Path) -> bool:
    """Whether a file is another one, or lies in a folder; names of nothing hold nothing."""
    with contextlib.suppress(OSError, ValueError):
        return os.path.samefile(name, path) or (
            os.path.isdir(name) and path.resolve().is_relative_to(Path(name).resolve())
        )
    return False


def _is_replaced(path: Path) -> bool:
    """Whether it is a file or to be one; a pipe or a device, as /dev/stdout, is written to as it is."""
    return path.is_file() or not path.exists()


@contextlib.contextmanager
def open_output(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` at the end, with nothing left of a failure.

    A link stays one; a pipe or a device is written to as it is.
    """
    with open_atomic(Path(os.path.realpath(path))) if _is_replaced(path) else open(path, "wb") as file:
        yield file
