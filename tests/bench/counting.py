"""What a step does, counted: operations that PyTorch dispatches, readings by the host, file look-ups."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from tests.bench.loops import Loop

READ_BY_HOST = "aten::_local_scalar_dense"
"""What `.item()`, `float()` and `bool()` of a tensor come to: on a GPU the host waits there. (`tolist` does not.)"""
_LOOK_UPS = "stat,lstat,newfstatat,statx,access,faccessat,faccessat2"
_PR_SET_PTRACER, _ANY_PROCESS = 0x59616D61, ctypes.c_ulong(-1)


class CountOps(TorchDispatchMode):
    """Counts operations by name from the first call of `mark` to the second."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._counting = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.name().split(".")[0]] += 1
        return func(*args, **(kwargs or {}))

    def mark(self) -> None:
        if self._counting:
            self.__exit__(None, None, None)
        else:
            self.__enter__()
        self._counting = not self._counting


def ops_per_step(loop: Loop, steps: int) -> Counter[str]:
    """Operations over so many steps by name, those of backward passes on the CPU included.

    A compiled net runs uncompiled while it is counted.
    """
    counter = CountOps()
    loop.block(steps, counter.mark)
    return counter.counts


class CountLookUps:
    """Counts system calls that look a file up by its name, from the first call of `mark` to the second, by strace.

    Those of this thread: what other loops keep running beside it is not counted.
    """

    def __init__(self) -> None:
        self.count: int | None = None
        """None where it could not be counted; `problem` says why."""
        self.problem = "" if shutil.which("strace") else "strace is not installed"
        self._process: subprocess.Popen[str] | None = None
        self._file = Path(tempfile.mkstemp()[1])

    def mark(self) -> None:
        if self.problem:
            return
        if self._process is None:
            self._attach()
        else:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()
            self.count = _sum_of_calls(self._file.read_text())

    def _attach(self) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANY_PROCESS, 0, 0, 0)
        command = ["strace", "-c", "-e", f"trace={_LOOK_UPS}", "-o", str(self._file), "-p", str(os.getpid())]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        said = self._process.stderr.readline()
        if "attached" not in said:
            self.problem = said.strip() or "strace could not attach"
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        self._file.unlink(missing_ok=True)


def _sum_of_calls(table: str) -> int:
    """Calls in the table that `strace -c` writes: time, seconds, us a call, calls, errors if any, name."""
    rows = re.findall(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", table, re.MULTILINE)
    return sum(int(calls) for calls, name in rows if name != "total")


def look_ups_per_step(loop: Loop, steps: int) -> tuple[float | None, str]:
    """Files looked up a step; or None, and why it could not be counted."""
    counter = CountLookUps()
    try:
        loop.block(steps, counter.mark)
    finally:
        counter.close()
    return (None, counter.problem) if counter.count is None else (counter.count / steps, "")
