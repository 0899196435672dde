"""A plugin of tests.bench.busy_cluster: the time that a GPU would take, where all nodes share one processor."""

from __future__ import annotations

import os
import time

from torch import nn


class GpuTime:
    """Make each step of a rank take as long as its images would on a GPU, and note on rank 0 when it was done.

    seconds: of one image. batch_size: of all ranks. notes: file that gets a line a step: step, unix time, ranks.
    """

    def __init__(self, seconds: float, batch_size: int, notes: str) -> None:
        self._ranks = int(os.environ.get("WORLD_SIZE", "1"))
        self._step_seconds = seconds * batch_size / self._ranks
        self._notes = notes if os.environ.get("RANK", "0") == "0" else None
        self._begun = time.monotonic()

    def on_step(self, step: int, model: nn.Module) -> None:
        # What the step took of the processor is part of it.
        time.sleep(max(0.0, self._begun + self._step_seconds - time.monotonic()))
        self._begun = time.monotonic()
        if self._notes:
            with open(self._notes, "a") as notes:
                notes.write(f"{step} {time.time():.3f} {self._ranks}\n")
