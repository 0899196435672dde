"""Ends a rank that hangs, with the stacks of its threads in its log."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time

from resnet.process.exit_codes import FAILED
from resnet.tracking.rank_log import RankLog


class Watchdog:
    """Ends the process, with the stacks of its threads in the rank's log, when nothing moves for so many minutes."""

    def __init__(self, minutes: float, log: RankLog, step: int) -> None:
        self._seconds, self._log, self._step = 60 * minutes, log, step
        self._last = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self, step: int) -> None:
        """Something moved: a step, or a batch of an evaluation."""
        self._last, self._step = time.monotonic(), step

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        pause = min(5.0, self._seconds / 4)
        while not self._ended.wait(pause):
            # Runs without Python's lock, should a hung library hold it and with it this thread.
            faulthandler.dump_traceback_later(self._seconds + 60, exit=True, file=self._log.file)
            if time.monotonic() - self._last > self._seconds:
                reason = f"no step for {self._seconds / 60:g} minutes (a hang); the stacks are in {self._log.place}"
                faulthandler.dump_traceback(self._log.file, all_threads=True)
                self._log.fail(1, self._step, reason, "hang", own_fault=True)
                print(f"train.py: rank {self._log.rank}: {reason}", file=sys.stderr, flush=True)
                os._exit(FAILED)
