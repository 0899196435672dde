"""Which rank the others wait for, and what it waits for itself: data, its own computing, or something else."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from resnet.rundir.metrics_log import SLOW_RANKS

SLOW = 1.2
"""How many times the median's time a rank takes in a step before it is named."""
MOST_NAMED = 3
"""Ranks that a line of the log names, the slowest first."""
_MOST_KEPT = 64
"""Micro-batches that are timed from one line of the log to the next; a GPU's marks are read at the line."""


class Seconds(NamedTuple):
    """Of one rank, a step, since the last line of the log."""

    whole: float
    data: float
    """Waiting for the next batch."""
    compute: float
    """From a batch to the end of its own backward pass."""
    wait: float
    """From there on until the gradients of all ranks were there: for slower ranks, and for the network."""

    @property
    def own(self) -> float:
        """What it takes by itself: the slowest rank waits least for others."""
        return self.whole - self.wait


class StepTimes:
    """Marks when a micro-batch begins, when its own gradients are there, and when those of all ranks are.

    On a GPU the marks are events on its stream: they are read at a line of the log, when the host has waited anyway.
    """

    def __init__(self, device: torch.device, first: nn.Parameter) -> None:
        """first: of the network's parameters, the gradient of which is the last to be computed."""
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[Any, Any, Any]] = []
        self._start = self._computed = None
        self._line = 0.0
        first.register_post_accumulate_grad_hook(self._has_computed)

    def begin(self) -> None:
        if len(self._marks) < _MOST_KEPT:
            self._start, self._computed = self._mark(), None

    def end(self) -> None:
        if self._start is not None:
            end = self._mark()
            self._marks.append((self._start, end if self._computed is None else self._computed, end))
            self._start = None

    def add_line(self, seconds: float) -> None:
        """What the ranks' sums for a line of the log took: on a CPU it is spent waiting for others."""
        self._line += 0.0 if self._on_gpu else seconds

    def read(self, micro_batches: int) -> tuple[float, float]:
        """Seconds of so many micro-batches since the last call: computing, and waiting for the others."""
        marks, line, self._marks, self._line = self._marks, self._line, [], 0.0
        if not marks:
            return 0.0, line
        scale = micro_batches / len(marks)
        compute = sum(self._between(start, computed) for start, computed, _ in marks)
        wait = sum(self._between(computed, end) for _, computed, end in marks)
        return scale * compute, scale * wait + line

    def _has_computed(self, _: torch.Tensor) -> None:
        if self._start is not None:
            self._computed = self._mark()

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, first: Any, second: Any) -> float:
        return first.elapsed_time(second) / 1000 if self._on_gpu else second - first


def told(ranks: Sequence[Seconds], hosts: Sequence[str]) -> dict[str, Any]:
    """For a line of the log: the slowest rank and, as `slow_ranks`, in words those that others have to wait for.

    slowest_ratio: its own time, in those of the median. slowest_by: data, compute or other (saving, logging, plugins),
    whichever exceeds the median's most. network_wait: share of the time that even the rank that waits least waits for
    the others' gradients.
    """
    own = [rank.own for rank in ranks]
    usual = max(statistics.median_low(own), 1e-9)
    slowest = sorted(range(len(ranks)), key=own.__getitem__, reverse=True)[:MOST_NAMED]
    parts = {
        "data": [rank.data for rank in ranks],
        "compute": [rank.compute for rank in ranks],
        "other": [rank.own - rank.data - rank.compute for rank in ranks],
    }
    excess = {name: [value - statistics.median_low(values) for value in values] for name, values in parts.items()}
    by = [max(excess, key=lambda name: excess[name][rank]) for rank in slowest]
    slow = [
        f"rank {rank} on {hosts[rank]}: {own[rank] / usual:.2f} times the median ({why})"
        for rank, why in zip(slowest, by, strict=True)
        if own[rank] >= SLOW * usual
    ]
    least = min(ranks, key=lambda rank: rank.wait)
    row = {
        "slowest_rank": slowest[0],
        "slowest_ratio": round(own[slowest[0]] / usual, 3),
        "slowest_by": by[0],
        "network_wait": round(least.wait / least.whole, 4),
    }
    return row | ({SLOW_RANKS: ", ".join(slow)} if slow else {})
