"""How the files of a run directory are written and read: whole or not at all, and JSON that every reader takes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

OLD = ".old.tmp"
"""End of the name of what is being taken away."""


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file so that readers, and a machine that loses power, see the old content or the new, never a part."""
    data = content.encode() if isinstance(content, str) else content
    with open_atomic(path) as file:
        file.write(data)


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """A file to write what `path` is to hold, which it takes the place of at the end; nothing is left of a failure."""
    # A sweep's trials on two machines may write one file at once, and have the same number there.
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}-{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            # A full disk names no file.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder (new, renamed, removed) survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """Take a file or a folder away: first its name, so that a half-removed one is never taken for what it was.

    What is left where the process is killed has a name that ends in `OLD`. Raises OSError.
    """
    gone = path.with_name(f"{path.name}{OLD}" if path.name.startswith(".") else f".{path.name}{OLD}")
    remove(gone)
    os.rename(path, gone)
    remove(gone)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: NaN and infinities become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none. Raises ValueError where the file is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it to go on without it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged (it holds no object); remove it to go on without it")
    return content


def number(value: Any) -> float | None:
    """The value where it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        # An integer beyond all that a float can hold.
        return None


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a file of JSON lines, and wait until it is on the disk."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(to_json(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, in order; empty where there is none.

    Left out is what is no object: a last line that was never finished, or what a node that died left of one.
    """
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows
