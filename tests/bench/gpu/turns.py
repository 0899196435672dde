"""Loops that take turns on a device: blocks of steps in shuffled order, timed by the device itself."""

from __future__ import annotations

import time
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
    """Until the host had given the device all of a step's work, without waiting for it."""
    step_memory: int = 0
    """Most bytes that a step took beside what lies there between steps."""


def take_turns(loops: dict[str, Loop], device: str, steps: int, rounds: int) -> dict[str, Turns]:
    """Time each loop's steps in every round; a round before them warms up and is not kept."""
    turns = {name: Turns() for name in loops}
    for name, loop, counts in in_turns(loops, rounds):
        device_seconds, host_seconds, memory = timed_block(loop, device, steps)
        if counts:
            turns[name].device_seconds.append(device_seconds / steps)
            turns[name].host_seconds.append(host_seconds / steps)
            turns[name].step_memory = max(turns[name].step_memory, memory)
    return turns


def timed_block(loop: Loop, device: str, steps: int) -> tuple[float, float, int]:
    """Seconds of the device and of the host for so many steps, and the most memory they took beside what there was."""
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
    host = end - begin
    if first is None or last is None:
        return host, host, 0
    return first.elapsed_time(last) / 1000, host, torch.cuda.max_memory_allocated() - before
