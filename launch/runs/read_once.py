"""What other runs' files tell of one, read once in a command that asks for it of many."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from resnet.process.kept import Kept

T = TypeVar("T")

_kept: Kept[Any] = Kept()
"""What `read_once` keeps, by what read it, and of which path."""


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """Within it `once` reads of each path once: an estimate reads twenty runs, which many estimates have in common."""
    with _kept.within():
        yield


def once(read: Callable[[Path], T], path: Path) -> T:
    """What `read` tells of a path, or told before."""
    if _kept.answers is None:
        return read(path)
    if (read, path) not in _kept.answers:
        _kept.answers[read, path] = read(path)
    return _kept.answers[read, path]
