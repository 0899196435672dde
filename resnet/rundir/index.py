"""What was read of many runs, kept in one file beside them, so that a later look reads only what has changed since.

Of each run it holds the times, sizes and inodes of the files that were read, and what came of them. It is a help and
no more: where it is damaged, of another version, or cannot be written, the runs are read as without it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet.rundir.files import write_atomic

LEAST_RUNS = 100
"""Below, reading them all takes no time."""
SETTLED_SECONDS = 2.0
"""A file that was just written might be written again within the resolution of its time, and would look the same."""


class Index:
    """One look at the runs of a folder: `get` what is known of each, `put` what had to be read, then `save`.

    file: the index. version: of what the values mean; an index of another one is not used.
    """

    def __init__(self, file: Path, version: str) -> None:
        self._file, self._version = file, version
        self._known = _read(file, version)
        self._new: dict[str, list[Any]] = {}
        self._seen: set[str] = set()
        self._settled = (time.time() - SETTLED_SECONDS) * 1e9

    def get(self, name: str, identities: Sequence[Sequence[int]]) -> dict[str, Any] | None:
        """What came of a run's files, where they are the same as then. identities: of `identity`, a file each."""
        self._seen.add(name)
        found = self._known.get(name)
        return found[1] if found is not None and found[0] == identities else None

    def put(self, name: str, identities: Sequence[Sequence[int]], value: dict[str, Any]) -> None:
        if all(identity[0] < self._settled for identity in identities if identity):
            self._new[name] = [identities, value]

    def save(self) -> None:
        """Keep what is new, and of the rest what was asked for: the others are gone. Two at once do not hurt."""
        if not self._new or len(self._seen) < LEAST_RUNS:
            return
        kept = {name: found for name, found in self._known.items() if name in self._seen}
        content = {"version": self._version, "runs": {**kept, **self._new}}
        # A folder of somebody else's is looked at without.
        with contextlib.suppress(OSError):
            write_atomic(self._file, json.dumps(content, separators=(",", ":")))


def identity(path: str) -> list[int]:
    """By what a file that has changed is told: time of change, size, inode; empty where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return []
    return [found.st_mtime_ns, found.st_size, found.st_ino]


def _read(file: Path, version: str) -> dict[str, list[Any]]:
    try:
        content = json.loads(file.read_bytes())
        if content["version"] != version:
            return {}
        runs = content["runs"]
        return {name: found for name, found in runs.items() if len(found) == 2 and isinstance(found[1], dict)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
