"""What this process spends its time on, by kind, from its start on. Only the standard library."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from resnet.process.stages import age

KINDS = ("start", "train", "evaluate", "save", "lost", "other")
"""start: until the first step; save: while training is held up by it; lost: what is made again; other: leaving."""


class Ledger:
    """Every second of the process is of one kind, so that they add up to its age."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kind, self._since = "start", time.monotonic()
        self._seconds = dict.fromkeys(KINDS, 0.0) | {"start": age()}

    def turn(self, kind: str) -> None:
        """From now on time is of this kind."""
        assert kind in KINDS, kind
        with self._lock:
            now = time.monotonic()
            self._seconds[self._kind] += now - self._since
            self._kind, self._since = kind, now

    @contextlib.contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """For so long time is of this kind, and then of that before."""
        before = self._kind
        self.turn(kind)
        try:
            yield
        finally:
            self.turn(before)

    def was(self, kind: str) -> None:
        """What passed since the last turn was of this kind after all."""
        assert kind in KINDS, kind
        with self._lock:
            self._kind = kind

    def lose(self, kept: dict[str, float]) -> None:
        """All that came after a moment is lost. kept: what `seconds` said then."""
        with self._lock:
            now = time.monotonic()
            whole = sum(self._seconds.values()) + now - self._since
            self._seconds = dict.fromkeys(KINDS, 0.0) | kept
            self._seconds["lost"] += max(0.0, whole - sum(kept.values()))
            self._kind, self._since = "lost", now

    def seconds(self) -> dict[str, float]:
        """By kind, until now."""
        with self._lock:
            now = dict(self._seconds)
            now[self._kind] += time.monotonic() - self._since
        return {kind: round(spent, 3) for kind, spent in now.items()}
