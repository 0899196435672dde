"""Ends a rank that hangs, with the stacks of its threads in its log."""

from __future__ import annotations

import collections
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Hashable

from resnet.process.environment import ATTEMPT
from resnet.process.exit_codes import FAILED
from resnet.tracking.flight_recorder import last_collective
from resnet.tracking.rank_log import RankLog

PART = 1 / 20
"""Of the time that anything may take: without a step between steps that are being made, before that is a hang."""
LEAST_SECONDS = 60.0
"""At least as that."""
TIMES_THE_SLOWEST = 20
"""As that, where steps are slow: of the slowest of the last ones."""
RECENT = 100
WARM = 3
"""Steps in a row of a kind after which the next is known to be about as quick."""
LOOK_SECONDS = 1.0


class Watchdog:
    """Ends the process, with the stacks of its threads in the rank's log, when nothing moves for too long.

    That is `minutes` while anything may take its time: the first steps, those of an image size that is new (it may be
    compiled for), an evaluation, a checkpoint that waits for the disk. Between other steps, in a job that starts the
    ranks again, it is a 20th of that (a minute by default, and never less), or 20 times the slowest of the last
    hundred. Time in which this process was stopped, or its machine slept, does not count.
    """

    def __init__(self, minutes: float, log: RankLog, step: int, world_size: int = 1) -> None:
        self._longest, self._log, self._step, self._world_size = 60 * minutes, log, step, world_size
        self._restarts = ATTEMPT in os.environ
        self._least = max(LEAST_SECONDS, PART * self._longest)
        self._last = time.monotonic()
        self._is_long = False
        self._recent: collections.deque[float] = collections.deque(maxlen=RECENT)
        self._kind: Hashable = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def step_made(self, step: int, kind: Hashable) -> None:
        """A step was made. kind: of the next one; where that is another, it may take long."""
        now = time.monotonic()
        if not self._is_long:
            self._recent.append(now - self._last)
        self._last, self._step, self._is_long = now, step, False
        if kind != self._kind:
            self._kind = kind
            self.rest()

    def beat(self) -> None:
        """Something moved that is no step."""
        self._last = time.monotonic()

    def rest(self) -> None:
        """What comes now may take long, and so may the first steps after it."""
        self._recent.clear()
        self.expect_long()
        self.beat()

    def expect_long(self) -> None:
        """The next step may take long: this rank, or one that it will wait for, has something to do before."""
        self._is_long = True

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def limit(self) -> float:
        """Seconds that may pass at present without a sign of life."""
        recent = [*self._recent]
        if not self._restarts or self._is_long or len(recent) < WARM:
            return self._longest
        return min(self._longest, max(self._least, TIMES_THE_SLOWEST * max(recent)))

    def _watch(self) -> None:
        pause = min(LOOK_SECONDS, self._longest / 4)
        looked = time.monotonic()
        while not self._ended.wait(pause):
            # Runs without Python's lock, should a hung library hold it and with it this thread.
            faulthandler.dump_traceback_later(self._longest + 60, exit=True, file=self._log.file)
            overslept = time.monotonic() - looked - pause
            looked += pause + overslept
            if overslept > LOOK_SECONDS:
                self._last += overslept
            limit, silent = self.limit(), looked - self._last
            if silent > limit or (silent > self._least and self._others_know_better(limit)):
                self._end(min(limit, silent))

    def _others_know_better(self, limit: float) -> bool:
        """Whether a rank of shorter steps has found the hang: who tells it too is not taken for the one that hangs."""
        return limit > self._least and not self._is_long and self._log.knows_of_a_hang()

    def _end(self, limit: float) -> None:
        faulthandler.dump_traceback(self._log.file, all_threads=True)
        told = last_collective(self._log.run_dir / "logs" / f"rank-{self._log.rank}.flight-recorder.json")
        period = f"{limit / 60:g} minutes" if limit == self._longest else f"{limit:.0f} seconds"
        reason = f"no step for {period} (a hang){told}; the stacks are in {self._log.place}"
        since = time.time() - (time.monotonic() - self._last)
        words = self._log.fail(self._world_size, self._step, reason, "hang", own_fault=True, since=since)
        print(f"train.py: rank {self._log.rank}: {reason}", file=sys.stderr, flush=True)
        if self._log.rank == self._log.speaker:
            print(f"train.py: training failed: {words}", file=sys.stderr, flush=True)
        os._exit(FAILED)
