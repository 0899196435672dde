"""What other runs' files tell of one, read once in a command that asks for it of many."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_kept: dict[tuple[Any, Path], Any] | None = None
"""What `read_once` keeps; None outside of it."""


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """Within it `once` reads of each path once: an estimate reads twenty runs, which many estimates have in common."""
    global _kept
    before, _kept = _kept, {} if _kept is None else _kept
    try:
        yield
    finally:
        _kept = before


def once(read: Callable[[Path], T], path: Path) -> T:
    """What `read` tells of a path, or told before."""
    if _kept is None:
        return read(path)
    if (read, path) not in _kept:
        _kept[read, path] = read(path)
    return _kept[read, path]
