"""Stage *speed*: images a second of our trainer beside bare PyTorch and other people's loops, and its bound."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import os
import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from recipes.load import load
from resnet.data.batches import Batch
from resnet.data.encoded import micro_batches
from resnet.data.loader import Loader
from resnet.data.order import Order
from resnet.data.sources.image_folder import open_image_folder
from tests.bench.gpu.here import copy_bandwidth
from tests.bench.gpu.stage import Options, Report, main
from tests.bench.gpu.traffic import Traffic, traffic
from tests.bench.gpu.turns import Turns, take_turns, timed_block
from tests.bench.loops import Loop, NextBatch, Setting, installed, make_loop, resident_batches
from tests.bench.ours import Ours

PEERS = ("timm", "torchvision", "accelerate")
ALL = ("bare", "bare_again", "bare_features", "ours", *PEERS)
PREFETCH = 2
"""Batches that each worker makes ahead."""
OURS = ("bare_features", "ours")


class Case(NamedTuple):
    name: str
    setting: Setting
    loops: tuple[str, ...]
    feed: str = "resident"
    """Where batches come from: resident on the device, or pinned on the host."""


def run(options: Options, report: Report) -> None:
    bandwidth = copy_bandwidth(options)
    first, *others = cases(options)
    report.attempt(first.name, partial(measure, first, bandwidth, options, report))
    if options.images is None:
        report.row("real JPEGs", left_out="--images FOLDER was not given")
    else:
        report.attempt("real JPEGs", lambda: measure_loader(options, report))
    for case in others:
        report.attempt(case.name, partial(measure, case, bandwidth, options, report))


def large(options: Options) -> Setting:
    """ImageNet's: what the memory bounds."""
    net, size, batch = ("resnet50", 224, 256) if options.on_gpu else ("resnet18", 64, 4)
    precision = "bf16" if options.on_gpu else "no"
    return Setting({"name": net}, 1000, batch, size, options.device, precision)


def small(options: Options) -> Setting:
    """CIFAR's: what the host may bound."""
    net = {"name": "resnet18", "stem": "cifar"}
    return dataclasses.replace(large(options), net=net, classes=10, size=32, batch_size=512 if options.on_gpu else 4)


def cases(options: Options) -> list[Case]:
    """In order of worth."""
    setting = large(options)
    pinned = Case(name_of(setting, "pinned"), setting, OURS, "pinned")
    if options.quick:
        return [Case(name_of(setting), setting, ALL), pinned]
    double = dataclasses.replace(setting, batch_size=2 * setting.batch_size)
    others = [dataclasses.replace(setting, net={"name": name}) for name in ("resnet18", "resnet101", "resnet152")]
    return [
        Case(name_of(setting), setting, ALL),
        Case(name_of(small(options)), small(options), ALL),
        pinned,
        *(Case(name_of(one), one, OURS) for one in (double, *others)),
    ]


def name_of(setting: Setting, *more: str) -> str:
    assert not callable(setting.net)
    return ", ".join([str(setting.net["name"]), f"{setting.batch_size} of {setting.size} px", *more])


def measure(case: Case, bandwidth: float, options: Options, report: Report) -> None:
    """A row for each loop of a case."""
    names, missing = installed(list(case.loops))
    for name, why in missing.items():
        report.row(f"{case.name}: {name}", left_out=why)
    loops: dict[str, Loop] = {}
    try:
        for name in names:
            start = time.monotonic()
            report.attempt(f"{case.name}: {name}", lambda name=name: loops.update({name: _begun(name, case)}))
            if case.setting.compile and name in loops:
                # Ours compiles the cast to bf16 with the net, and shares nothing with the loop that casts around it.
                report.row(f"{case.name}: {name}, first steps", seconds=time.monotonic() - start)
        steps, rounds = (10, 2 if options.quick else 5) if options.on_gpu else (2, 1)
        turns = take_turns(loops, options.device, steps, rounds, lambda: report.time_is_over)
    finally:
        for loop in loops.values():
            loop.close()
        loops.clear()
        gc.collect()
        torch._dynamo.reset()
    bound = traffic(case.setting.build(), case.setting.size)
    for name in turns:
        report.row(f"{case.name}: {name}", **_facts(name, turns, case, bound, bandwidth))


def _begun(name: str, case: Case) -> Loop:
    """A loop whose first steps, in which kernels are chosen and compiled, are made."""
    loop = make_loop(name, case.setting, pinned_batches(case.setting) if case.feed == "pinned" else None)
    loop.block(3)
    return loop


def pinned_batches(setting: Setting, count: int = 4) -> NextBatch:
    """Random uint8 batches in page-locked memory of the host, copied to the device without waiting."""
    on_gpu = setting.device == "cuda"
    shape = (setting.batch_size, 3, setting.size, setting.size)
    random = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        images = torch.randint(256, shape, generator=random, dtype=torch.uint8)
        images = images.contiguous(memory_format=setting.memory_format)
        labels = torch.randint(setting.classes, shape[:1], generator=random)
        batches.append((images.pin_memory(), labels.pin_memory()) if on_gpu else (images, labels))
    turns = itertools.cycle(batches)

    def next_batch() -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = next(turns)
        return images.to(setting.device, non_blocking=True), labels.to(setting.device, non_blocking=True)

    return next_batch


def _facts(name: str, turns: dict[str, Turns], case: Case, bound: Traffic, bandwidth: float) -> dict[str, Any]:
    measured, batch = turns[name], case.setting.batch_size
    seconds = statistics.median(measured.device_seconds)
    facts: dict[str, Any] = {"images_per_second": batch / seconds, "ms": 1000 * seconds}
    for base in ("bare", "bare_features"):
        if base in turns:
            pairs = zip(turns[base].device_seconds, measured.device_seconds, strict=True)
            facts[f"speed_to_{base}"] = statistics.median(theirs / own for theirs, own in pairs)
    facts["share_of_bound"] = (bound.fused if case.setting.compile else bound.eager) * batch / seconds / bandwidth
    facts["host_ms"] = 1000 * statistics.median(measured.host_seconds)
    facts["step_memory_gb"] = measured.step_memory / 1e9
    return facts | {"seconds": measured.device_seconds}


class Tiled:
    """A source whose images stand there again and again, so that an epoch of them is long enough."""

    def __init__(self, source: Any, length: int) -> None:
        self._source, self.classes = source, source.classes
        self.labels = np.resize(source.labels, length)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return self._source.read(index % len(self._source))

    def describe(self, index: int) -> str:
        return self._source.describe(index % len(self._source))


def measure_loader(options: Options, report: Report) -> None:
    """Our loader on all cores: before the trainer, whose speed on resident batches is beside it, and alone."""
    setting = dataclasses.replace(large(options), total_steps=400 if options.on_gpu else 40)
    workers, steps = min(16, len(os.sched_getaffinity(0))), 40 if options.on_gpu else 2
    resident, fed = Ours(setting, resident_batches(setting)), Ours(setting, resident_batches(setting))
    loader = _jpegs(fed, options, setting, workers)
    # Batches that were made while nobody asked for them.
    ready = workers * PREFETCH
    try:
        resident.block(3)
        fast = setting.batch_size / (timed_block(resident, options.device, steps)[0] / steps)
        fed.trainer.batches = iter(loader)
        fed.block(ready)
        real = setting.batch_size / (timed_block(fed, options.device, steps)[0] / steps)
        alone = _alone(fed.trainer.batches, ready, steps, setting)
        report.row(
            "real JPEGs", images_per_second=real, resident=fast, ratio=real / fast, loader=alone, workers=workers
        )
    finally:
        fed.trainer.batches = iter(())
        loader.end()
        resident.close()
        fed.close()


def _jpegs(loop: Ours, options: Options, setting: Setting, workers: int) -> Loader:
    words = ["recipe=resnet50_imagenet", f"data.train={options.images}", f"data.val={options.images}"]
    recipe = load([*words, f"augment.train_size={setting.size}"]).recipe
    train, val = open_image_folder(recipe.data)  # pyright: ignore[reportArgumentType]
    source = Tiled(train, setting.batch_size * setting.total_steps)
    order = Order(source.labels, seed=0, batch_size=setting.batch_size)
    device = torch.device(options.device)
    batches = micro_batches(recipe, source, val or train, order, device)  # pyright: ignore[reportArgumentType]
    return Loader(batches, loop.trainer.keys(), device, workers, PREFETCH)


def _alone(batches: Iterator[Batch], ready: int, steps: int, setting: Setting) -> float:
    """Images a second that come when nobody computes."""
    for _ in range(ready):
        next(batches)
    start = time.perf_counter()
    for _ in range(steps):
        next(batches)
    return steps * setting.batch_size / (time.perf_counter() - start)


if __name__ == "__main__":
    raise SystemExit(main("speed", run))
