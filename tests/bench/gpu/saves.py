"""Stage *saves*: how long a checkpoint holds training up, beside torch.save with fsync, and how long a resume takes."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from resnet.checkpoint.commit import newest_valid
from resnet.checkpoint.snapshot import read_rest, restore
from tests.bench.checkpoint import save_with_torch, timed
from tests.bench.gpu.speed import large
from tests.bench.gpu.stage import Options, Report, main, synchronize
from tests.bench.loops import make_loop
from tests.bench.ours import Ours


def run(options: Options, report: Report) -> None:
    loop = make_loop("ours", dataclasses.replace(large(options), batch_size=64 if options.on_gpu else 4))
    assert isinstance(loop, Ours)
    try:
        loop.block(3)
        rounds = 2 if options.quick else 4
        report.attempt("a save in training", lambda: report.row("a save in training", **stall(loop, options, rounds)))
        report.attempt("torch.save + fsync", lambda: report.row("torch.save + fsync", **plain(loop, options, rounds)))
        report.attempt("resume", lambda: report.row("resume", **resume(loop, options)))
    finally:
        loop.close()


def stall(loop: Ours, options: Options, rounds: int) -> dict[str, Any]:
    """What ten steps with a save in their middle take longer than ten without, in turns, and the save's own time."""
    hooks, steps = loop.hooks, 10 if options.on_gpu else 2
    start = time.perf_counter()
    hooks.save(wait=True)
    first = time.perf_counter() - start
    with_save, without, own, written = [], [], [], []
    for _ in range(rounds):
        without.append(timed(lambda: loop.block(steps), torch.device(options.device)))
        synchronize(options.device)
        start = time.perf_counter()
        loop.block(steps // 2)
        hooks.save()
        loop.block(steps - steps // 2)
        synchronize(options.device)
        with_save.append(time.perf_counter() - start)
        hooks.saver.wait()
        written.append(time.perf_counter() - start)
        # On an idle device, as torch.save is timed: a save in training waits for the steps before it.
        hooks.save()
        own.append(hooks.saver.stall)
        hooks.saver.wait()
    if hooks.saver.failures:
        raise RuntimeError(hooks.saver.problem)
    extra = [1000 * (one - other) for one, other in zip(with_save, without, strict=True)]
    return {
        "stall_ms": statistics.median(extra),
        "least_ms": min(extra),
        "most_ms": max(extra),
        "save_returns_ms": 1000 * statistics.median(own),
        "on_disk_ms": 1000 * statistics.median(written),
        "first_ms": 1000 * first,
        "step_ms": 1000 * statistics.median(without) / steps,
    }


def plain(loop: Ours, options: Options, rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        file = Path(folder) / "plain.pt"
        device, state = torch.device(options.device), loop.trainer.state
        seconds = [timed(lambda: save_with_torch(state, file), device) for _ in range(rounds + 1)][1:]
        return {"ms": 1000 * statistics.median(seconds), "megabytes": file.stat().st_size / 1e6}


def resume(loop: Ours, options: Options) -> dict[str, float]:
    """Seconds to check the newest checkpoint's digests, and to put it into a state on the device."""
    state = loop.trainer.state
    start = time.perf_counter()
    checkpoint = newest_valid(loop.hooks.run_dir / "checkpoints", print)
    checked = time.perf_counter() - start
    assert checkpoint is not None
    restore(state, checkpoint, read_rest(checkpoint), 0, 1)
    synchronize(options.device)
    return {"check_ms": 1000 * checked, "restore_ms": 1000 * (time.perf_counter() - start - checked)}


if __name__ == "__main__":
    raise SystemExit(main("saves", run))
