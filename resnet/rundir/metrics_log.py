"""metrics.jsonl: what a run measured."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Union

from resnet.rundir.files import number, to_json

INPUT_DIGEST = "input_digest"
"""Key of a whole number that the training images since the last line make: the same for the same images."""
SLOW_RANKS = "slow_ranks"
"""Key of the ranks that others wait for, in words: each with its host, its time in those of the median, and what it
takes it for."""
DIGEST_RANGE = 2**53
"""Digests are added modulo this: a double, as many readers of JSON keep numbers in, holds them exactly."""


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, in order; a last line that was never finished is left out."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from error


class Point(NamedTuple):
    """One value of a curve, and where on it."""

    value: float
    epoch: float | None
    step: float | None
    time: float | None
    """Unix time."""


def points_of(rows: Iterable[Mapping[str, Any]], key: str) -> list[Point]:
    """The finite values of a key, in order."""
    found = ((number(row.get(key)), row) for row in rows)
    return [
        Point(value, *(number(row.get(at)) for at in Point._fields[1:])) for value, row in found if value is not None
    ]


def read_points(path: str | Path, key: str) -> tuple[list[Point], int]:
    """The values of a key that a metrics.jsonl holds, in order, and how many of its lines are damaged.

    Few lines are decoded where few have the key: a sweep's runs may have a million. Raises OSError.
    """
    quoted, rows, damaged = json.dumps(key).encode(), [], 0
    text = Path(path).read_bytes()
    # A last line without its end is being written.
    end, found = text.rfind(b"\n") + 1, -1
    while (found := text.find(quoted, found + 1, end)) >= 0:
        start, found = text.rfind(b"\n", 0, found) + 1, text.find(b"\n", found)
        try:
            row = json.loads(text[start:found])
        except ValueError:
            row = None
        if isinstance(row, dict) and key in row:
            rows.append(row)
        else:
            damaged += 1
    return points_of(rows, key), damaged


Value = Union[float, int, str, bool, None]  # noqa: UP007  (evaluated, which Python 3.9 could not)
"""What a key of a row may hold."""


class MetricsLog:
    """metrics.jsonl: one flat JSON object a line, only ever appended to, except that a resume cuts it.

    Unlike W&B's offline files, which reach the disk in blocks of 32 KiB, each row is with the kernel when `log`
    returns, and on the disk after `sync`: where the two differ, this one is right.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        self._unwritten = b""
        self._cut(self._length())

    def log(self, row: Mapping[str, Value]) -> None:
        """Append a row. NaN and infinities become null, so that every reader of JSON takes the line.

        What a full disk does not take is kept for the next call, or for `sync`, which tells of it.
        """
        assert all(value is None or isinstance(value, (int, float, str)) for value in row.values()), row
        self._unwritten += to_json(row).encode() + b"\n"
        with contextlib.suppress(OSError):
            self._write()

    def sync(self) -> int:
        """Wait until all rows are on the disk; returns the file's length in bytes, for `truncate`. Raises OSError."""
        self._write()
        os.fsync(self._file.fileno())
        return self._length()

    def _write(self) -> None:
        while self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def truncate(self, length: int) -> None:
        """Drop the rows after the first `length` bytes: those that a resumed run is about to write again."""
        self._cut(min(length, self._length()))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sync()
        self._file.close()

    def _length(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _cut(self, length: int) -> None:
        """Shorten to the last whole line within `length` bytes."""
        end = length
        while end > 0:
            start = max(0, end - 65536)
            self._file.seek(start)
            newline = self._file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        self._file.truncate(end)
