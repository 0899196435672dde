"""Stage *where the time goes*: kernels, gaps between them and the host's work, in steps of the real trainer."""

from __future__ import annotations

import gc
import statistics
from collections import Counter
from functools import partial
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from tests.bench.gpu.speed import large, name_of, small
from tests.bench.gpu.stage import Options, Report, main, synchronize
from tests.bench.gpu.turns import take_turns
from tests.bench.loops import Loop, Setting, make_loop

STEPS = 5


def run(options: Options, report: Report) -> None:
    for setting in (large(options), small(options)):
        report.attempt(name_of(setting), partial(look, name_of(setting), setting, options, report))


def look(name: str, setting: Setting, options: Options, report: Report) -> None:
    loop = make_loop("ours", setting)
    try:
        # No line of the log falls into what follows: there the host does wait.
        loop.block(3)
        report.attempt(f"{name}: waits", lambda: report.row(f"{name}: waits", **waits(loop, options)))
        turns = take_turns({"ours": loop}, options.device, 2 * STEPS, 1)["ours"]
        host, device = (statistics.median(seconds) for seconds in (turns.host_seconds, turns.device_seconds))
        ahead = host < 0.95 * device if options.on_gpu else None
        report.row(f"{name}: a step", device_ms=1000 * device, host_ms=1000 * host, host_is_ahead=ahead)
        report.row(f"{name}: kernels", **kernels(loop, options))
    finally:
        loop.close()
        gc.collect()


def waits(loop: Loop, options: Options) -> dict[str, Any]:
    """Whether the host waits for the device between two lines of the log, by CUDA's own alarm."""
    if not options.on_gpu:
        return {"left_out": "there is no GPU to wait for"}
    synchronize(options.device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop.block(STEPS)
    except RuntimeError as error:
        return {"failed": str(error).splitlines()[0]}
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"found": "none"}


def kernels(loop: Loop, options: Options) -> dict[str, Any]:
    """Of a step: kernels and their time, the share of it in which the device had none, and the ten largest."""
    wanted = DeviceType.CUDA if options.on_gpu else DeviceType.CPU
    # On a GPU its kernels alone: noting the host's operations too would hold the host up, and make gaps.
    with profile(activities=[ProfilerActivity.CUDA if options.on_gpu else ProfilerActivity.CPU]) as profiled:
        loop.block(STEPS)
        synchronize(options.device)
    spans = [(event.name, event.time_range.start, event.time_range.end) for event in _of(profiled, wanted)]
    if not spans:
        return {"failed": "the profiler recorded nothing of the device"}
    busy, whole = _covered(spans), max(end for *_, end in spans) - min(start for _, start, _ in spans)
    times, counts = Counter[str](), Counter(name for name, *_ in spans)
    for name, start, end in spans:
        times[name] += end - start
    largest = [
        {"kernel": name[:120], "ms": time / STEPS / 1000, "times": counts[name] / STEPS}
        for name, time in times.most_common(10)
    ]
    for kernel in largest:
        print(f"    {kernel['ms']:8.3f} ms {kernel['times']:6.1f} x  {kernel['kernel'][:90]}")
    return {
        "kernels": len(spans) / STEPS,
        "small": sum(end - start < 5 for _, start, end in spans) / STEPS,
        "busy_ms": busy / STEPS / 1000,
        "idle_share": 1 - busy / whole,
        "largest": largest,
    }


def _of(profiled: profile, wanted: DeviceType) -> list[Any]:
    """The device's own work; on the CPU what no other operation called."""
    events = [event for event in profiled.events() or [] if event.device_type == wanted]
    if wanted == DeviceType.CUDA:
        # Ranges with a name are noted on the device's time line too, and are no kernels.
        return [event for event in events if not event.is_user_annotation]
    return [event for event in events if event.cpu_parent is None]


def _covered(spans: list[tuple[str, float, float]]) -> float:
    """Microseconds in which anything ran."""
    covered, until = 0.0, float("-inf")
    for _, start, end in sorted(spans, key=lambda span: span[1]):
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered


if __name__ == "__main__":
    raise SystemExit(main("host", run))
