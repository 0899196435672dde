"""Loops that take turns on a device: blocks of steps in shuffled order, timed by the device itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from tests.bench.gpu.stage import synchronize
from tests.bench.loops import Loop, in_turns


@dataclass
class Turns:
    """What was measured of one loop."""

    device_seconds: list[float] = field(default_factory=list)
    """A step, in each round."""
    host_seconds: list[float] = field(default_factory=list)
    """Until the host had given the device a step's work, without waiting for it."""
    step_memory: int = 0
    """Most bytes that a step took beside what lies there between steps."""


def take_turns(
    loops: dict[str, Loop], device: str, steps: int, rounds: int, over: Callable[[], bool] = lambda: False
) -> dict[str, Turns]:
    """Time each loop's steps in every round; a round before them warms up and is not kept.

    over: whether time is up; after the first round none begins then.
    """
    turns = {name: Turns() for name in loops}
    for number, (name, loop, counts) in enumerate(in_turns(loops, rounds)):
        if number % len(loops) == 0 and number > len(loops) and over():
            break
        device_seconds, host_seconds, memory = timed_block(loop, device, steps)
        if counts:
            turns[name].device_seconds.append(device_seconds / steps)
            turns[name].host_seconds.append(host_seconds)
            turns[name].step_memory = max(turns[name].step_memory, memory)
    return turns


def timed_block(loop: Loop, device: str, steps: int) -> tuple[float, float, int]:
    """Seconds of the device for so many steps, of the host for a single one, and the most memory beside what there was.

    The host's step is one more: the device's queue is short (some 1,000 launches), and a host that has filled it waits.
    """
    on_gpu = device == "cuda"
    marks: list[tuple[float, torch.cuda.Event | None]] = []

    def mark() -> None:
        event = torch.cuda.Event(enable_timing=True) if on_gpu else None
        if event is not None:
            event.record()
        marks.append((time.perf_counter(), event))

    synchronize(device)
    before = 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    loop.block(steps, mark)
    synchronize(device)
    (begin, first), (end, last) = marks
    if first is None or last is None:
        return end - begin, (end - begin) / steps, 0
    memory = torch.cuda.max_memory_allocated() - before
    start = time.perf_counter()
    loop.block(1)
    host = time.perf_counter() - start
    synchronize(device)
    return first.elapsed_time(last) / 1000, host, memory
