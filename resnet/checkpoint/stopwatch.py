"""Time as the device that trains sees it."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """From its making to `stop`: of a GPU the time that it takes for what it is given between; it is not waited for."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._events = [self._event(self._stream)] if self._stream else []
        self._begun = self._ended = time.perf_counter()

    def stop(self) -> None:
        self._ended = time.perf_counter()
        if self._stream:
            self._events.append(self._event(self._stream))

    def seconds(self) -> float:
        """Once it has been stopped; waits for a GPU to come so far, so best called where nothing else waits."""
        if not self._stream:
            return self._ended - self._begun
        first, last = self._events
        last.synchronize()
        return first.elapsed_time(last) / 1e3

    def _event(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(stream)
        return event
