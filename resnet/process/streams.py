"""Standard output and error that never end a run: a terminal closes, a pipe's reader goes, a disk is full."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO


class _Forgiving:
    """A text stream of which writes that fail are lost, and nothing else; a file may take the same."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.copy: TextIO | None = None

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        # A bar that is drawn over and over is for a terminal.
        if self.copy is not None and not text.startswith("\r"):
            with contextlib.suppress(OSError, ValueError):
                self.copy.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in (self._stream, self.copy):
            with contextlib.suppress(OSError, ValueError):
                if stream is not None:
                    stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def forgive_output() -> None:
    """Go on when nobody can read what is printed; and write whole lines, since ranks share an output.

    (Under PYTHONUNBUFFERED Python writes a line in pieces, and those of two ranks mix.)
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(line_buffering=True, write_through=False)
        if stream is not None and not isinstance(stream, _Forgiving):
            setattr(sys, name, _Forgiving(stream))


@contextlib.contextmanager
def kept_in(file: Path) -> Iterator[TextIO | None]:
    """Write what this process prints to a file too; yields it. Needs `forgive_output` before it."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, _Forgiving)]
    with contextlib.ExitStack() as stack:
        copy = None
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            copy = stack.enter_context(open(file, "a", encoding="utf-8", errors="replace", buffering=1))
        for stream in streams:
            stream.copy = copy
        try:
            yield copy
        finally:
            for stream in streams:
                stream.copy = None


def leave(code: int) -> NoReturn:
    """End this process at once: what Python does at its exit, as to take its modules apart, can take seconds.

    Under a profiler or a debugger, which write what they have found at the exit, in the usual way.
    """
    monitoring = getattr(sys, "monitoring", None)  # from Python 3.12 on
    tools = [monitoring.get_tool(number) for number in range(6)] if monitoring else []
    if sys.getprofile() or sys.gettrace() or any(tools):
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    os._exit(code)
