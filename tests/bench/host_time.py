"""Where the host's time of one of our steps goes, by function."""

from __future__ import annotations

import contextlib
import pkgutil
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from tests.bench.loops import Setting, make_loop

PARTS = {
    "train_step": "resnet.loop.train_step",
    "  set_hyper": "resnet.loop.set_hyper",
    "  next_batch": "resnet.trainer.Trainer.next_batch",
    "  network_input": "resnet.training_input.network_input",
    "  draw_mix": "resnet.training_input.draw_mix",
    "  forward": "tests.bench.loops.TinyNet.forward",
    "  loss": "torch.nn.functional.cross_entropy",
    "  Window.add": "resnet.metrics.Window.add",
    "  backward": "torch.Tensor.backward",
    "  clip": "resnet.loop._clip",
    "  optimizer.step": "torch.optim.SGD.step",
    "  zero_grad": "torch.optim.Optimizer.zero_grad",
    "  Ema.update": "resnet.ema.Ema.update",
    "log_window": "resnet.loop.log_window",
    "  Window.read": "resnet.metrics.Window.read",
    "  hooks.log": "resnet.run_hooks.RunHooks.log",
    "    MetricsLog.log": "resnet.rundir.metrics_log.MetricsLog.log",
    "    write_status": "resnet.run_hooks.write_status",
    "hooks.after_step": "resnet.run_hooks.RunHooks.after_step",
    "  Progress.update": "resnet.tracking.progress.Progress.update",
    "Plan.hyper (where it is called)": "recipes.plan.Plan.hyper",
}
"""What is timed, under the name that is shown; what is indented is part of what stands above it."""


class Timed:
    """Durations of a function's calls in nanoseconds."""

    def __init__(self, name: str) -> None:
        self.name, self.durations = name, list[int]()

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter_ns()
            try:
                return function(*args, **kwargs)
            finally:
                self.durations.append(time.perf_counter_ns() - start)

        return timed

    def microseconds(self, steps: int) -> float:
        """A step's share: the median call, which another process's turn does not disturb, times the calls."""
        return statistics.median(self.durations) * len(self.durations) / steps / 1000 if self.durations else 0.0


@contextlib.contextmanager
def timed_parts() -> Iterator[list[Timed]]:
    """Time the functions of PARTS that are there, within the block."""
    with contextlib.ExitStack() as patches:
        timed = []
        for name, where in PARTS.items():
            with contextlib.suppress(AttributeError, ImportError):
                part = Timed(name)
                patches.enter_context(mock.patch(where, part.around(pkgutil.resolve_name(where))))
                timed.append(part)
        yield timed


def host_time(setting: Setting, steps: int = 500) -> dict[str, float]:
    """Microseconds a step of our loop over a net of `loops.TinyNet`, by the names of PARTS; and of the whole step.

    The clock itself takes about a microsecond a call out of what stands above.
    """
    loop = make_loop("ours", setting)
    loop.block(2 * setting.log_every)
    marks: list[int] = []
    loop.block(steps, lambda: marks.append(time.perf_counter_ns()))
    with timed_parts() as parts:
        loop.block(steps)
    loop.close()
    shares = {part.name: part.microseconds(steps) for part in parts}
    return {"a step, untimed inside": (marks[1] - marks[0]) / steps / 1000, **shares}
