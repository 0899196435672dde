"""Networks in processes of their own, as other programs would load them: what they answer, and how fast."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from resnet.process.environment import cores_of_rank, threads_asked

_PATIENCE = 5.0
"""Seconds in which a process whose network is no longer asked for comes to its end."""
_PROGRAM = Path(__file__).with_name("serve.py")


class NotServed(ValueError):
    """A process cannot load its network, or has failed; with its last words."""


class Served:
    """A network in another process. Its answers raise `NotServed` where that has failed."""

    def __init__(self, connection: Connection, process: subprocess.Popen[bytes], said: Any, name: str) -> None:
        self._connection, self._process, self._said, self.name = connection, process, said, name

    def logits(self, images: np.ndarray) -> np.ndarray:
        """What it says of images: float32 (N, 3, H, W), normalised -> (N, classes)."""
        return self._ask("logits", images)

    def hold(self, images: np.ndarray) -> None:
        """Let it keep images to be timed with."""
        self._ask("hold", images)

    def seconds(self) -> float:
        """Of one forward pass of the images that it holds."""
        return self._ask("time", None)

    def _ask(self, request: str, value: Any) -> Any:
        try:
            self._connection.send((request, value))
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise self.failure() from error

    def failure(self) -> NotServed:
        code = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        why = lines[-1] if lines else f"exit {code}"
        if code < 0:
            # What it said last may be a warning of long before.
            why = _killed_by(-code) + (f"; it said last: {lines[-1]}" if lines and -code != signal.SIGKILL else "")
        return NotServed(f"{self.name} cannot be used in a process of its own: {why}")


def _killed_by(number: int) -> str:
    known = next((one.name for one in signal.Signals if one == number), f"signal {number}")
    return f"killed by {known}" + (" (out of memory?)" if number == signal.SIGKILL else "")


def threads() -> int:
    """How many a network computes on: as many as training would."""
    return threads_asked() or cores_of_rank()


def _search_path() -> list[str]:
    """Where this process finds modules, but for the working directory.

    An isolated one would not look where PYTHONPATH says, nor among what `pip install --user` installs.
    """
    here = os.path.realpath(".")
    return [path for path in sys.path if os.path.realpath(path or ".") != here]


@contextlib.contextmanager
def served(name: str, spec: Mapping[str, Any]) -> Iterator[Served]:
    """A network in a fresh process, which ends with the block.

    name: for messages. spec: `kind` and what it needs, see `resnet.tools.export.serve`.
    Raises `NotServed` where it cannot be loaded.
    """
    ours, theirs = Pipe()
    with tempfile.TemporaryFile() as said:
        words = json.dumps({**spec, "threads": threads(), "search_path": _search_path()})
        command = [sys.executable, "-I", str(_PROGRAM), str(theirs.fileno()), words]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stderr=said)
        theirs.close()
        network = Served(ours, process, said, name)
        try:
            with contextlib.closing(ours):
                try:
                    ours.recv()
                except EOFError as error:
                    raise network.failure() from error
                yield network
        finally:
            # It leaves by itself when nobody speaks to it: killed, it would leave what AOTInductor has unpacked.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
            process.kill()
            process.wait()
