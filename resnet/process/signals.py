"""Signals that ask a process to stop, noted from its first moment on: imports nothing that takes time."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from types import FrameType

from resnet.process.environment import is_under_accelerate
from resnet.process.exit_codes import INTERRUPTED, STOPPED

PARENT = os.getppid()
"""Process that started this one, seen before the imports that take seconds: it may be gone after them."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
_SAME_SECONDS = 2.0


class Signals:
    """Remembers that a signal asked this process to stop; a second Ctrl-C leaves at once."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._time = 0.0

    def install(self) -> None:
        for number in SIGNALS:
            # nohup has SIGHUP ignored.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        # A launcher passes on the Ctrl-C that the terminal sent to all its processes: that is the same one again.
        if number == signal.SIGINT and self.received == "SIGINT" and time.monotonic() - self._time > _SAME_SECONDS:
            sys.stderr.write("\nstopped at once; the newest checkpoint on disk is the one to continue from\n")
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        if self.received is None:
            self._time = time.monotonic()
        self.received = self.received or signal.Signals(number).name


def die_with_launcher() -> None:
    """Under `accelerate launch` or torchrun: take the launcher's death as SIGTERM (it may be killed without a word)."""
    if is_under_accelerate() or "TORCHELASTIC_RUN_ID" in os.environ:
        if os.getppid() != PARENT:
            # Nothing has begun, and the ranks' meeting point has gone with it.
            os._exit(STOPPED)
        die_with_parent(signal.SIGTERM, PARENT)


def die_with_parent(number: signal.Signals, parent: int) -> None:
    """Have the kernel send this process a signal when its parent dies, or now if it is dead already (Linux only).

    parent: its process id, which a look at who the parent is now could not tell: in a container it may well be 1.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)
