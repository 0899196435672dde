"""What tests of whole runs share: `train.py` in this process or in others, and readers of what a run leaves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import safetensors.torch
import torch
from accelerate.state import AcceleratorState

from resnet.main import main
from resnet.process.signals import SIGNALS

PROGRAM = Path(__file__).parent.parent
OFF = ["device=cpu", "wandb.mode=disabled"]
"""Every run's: neither a GPU nor W&B's process."""
TINY = [
    *("recipe=quickstart", *OFF, "model.name=null", "model.block=basic", "model.layers=[1,1,1]", "batch_size=16"),
    *("augment.train_size=32", "augment.val_resize=36", "augment.val_size=32", "data.num_workers=0", "log_every=1"),
    *("optimizer.lr=0.01", "data.per_class=16", "data.size=40"),
]
"""A net of a tenth of a second a step; data.train (where the shapes are), run.root and run.name come with each test."""


def train(*words: object, report: bool = False) -> int:
    """`python train.py WORDS` in this process, on one core; returns its exit code.

    report: draw the pictures and write report.html, which takes longer than the rest of a tiny run.
    """
    drawn = contextlib.nullcontext() if report else mock.patch("resnet.tools.report.report.write_report")
    with unchanged_process(), cores(1), drawn:
        return main([str(word) for word in words])


@contextlib.contextmanager
def unchanged_process() -> Iterator[None]:
    """Put back afterwards what a run changes for its whole process."""
    environment, threads = dict(os.environ), torch.get_num_threads()
    deterministic, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    AcceleratorState._reset_state(True)
    try:
        yield
    finally:
        AcceleratorState._reset_state(True)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark
        os.environ.clear()
        os.environ.update(environment)


@contextlib.contextmanager
def cores(count: int) -> Iterator[None]:
    """As under `taskset`: ranks take one thread a core, and the number of threads changes their rounding."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    first = os.getpid() % len(before)
    os.sched_setaffinity(0, [*sorted(before)[first:], *sorted(before)[:first]][:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def start(*command: object, on_cores: int = 1, **environment: object) -> subprocess.Popen[str]:
    """A Python process in the program's folder, its output caught."""
    with cores(on_cores):
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=PROGRAM,
            env=os.environ | {name: str(value) for name, value in environment.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def finish(process: subprocess.Popen[str], seconds: float = 180) -> subprocess.CompletedProcess[str]:
    """Wait for a process, and end it where it takes too long."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def metrics(run: Path, key: str = "step") -> list[dict]:
    """The rows of metrics.jsonl that have a key."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if key in row]


def column(run: Path, key: str) -> list[float]:
    return [row[key] for row in metrics(run, key)]


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())


def evaluation(run: Path) -> dict:
    return json.loads((run / "evaluation.json").read_text())


def weights(run: Path, name: str = "final.safetensors") -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / name)


def newest(run: Path) -> str:
    """The name, from the run directory on, of the checkpoint that `latest` points to."""
    return f"checkpoints/{(run / 'checkpoints' / 'latest').read_text().strip()}"


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are bitwise equal."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def furthest(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The largest difference between any two elements of two state dicts."""
    assert first.keys() == second.keys()
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)
