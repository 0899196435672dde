"""Stage *learns*: CIFAR-10 to 94% by a recipe of this program, and a kill and a stop in the middle of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from resnet.process.environment import PROGRAM
from resnet.rundir.metrics_log import read_metrics
from tests.bench.gpu.stage import Options, Report, main

RECIPE = "cifar10_resnet18_fast"


def run(options: Options, report: Report) -> None:
    if options.cifar is None:
        report.row("CIFAR-10", left_out="--cifar FOLDER was not given")
        return
    found: dict[str, Any] = {}

    def to_94(epochs: int) -> None:
        found.update(train(options, "to-94", 94.0, f"epochs={epochs if options.on_gpu else 1}"))
        report.row(f"to 94% in {epochs} epochs", **found)

    report.attempt("to 94%", lambda: to_94(10))
    report.attempt("resume", lambda: report.row("kill and stop, bitwise", **verify(options)))
    if found and not found["seconds_to_94"] and options.on_gpu:
        report.attempt("to 94%, longer", lambda: to_94(16))


def words(options: Options, *more: str) -> list[str]:
    given = [f"recipe={RECIPE}", "data.source=huggingface", f"data.train={options.cifar}", "data.val=null"]
    tiny = [] if options.on_gpu else ["data.max_train=64", "data.max_val=32", "batch_size=16", "data.num_workers=1"]
    return [*given, "data.val_split=test", f"device={options.device}", *tiny, *more]


def train(options: Options, name: str, wanted: float, *more: str) -> dict[str, Any]:
    """Train to the recipe's end in a process; how well it did, and the seconds until the accuracy that is wanted."""
    places = [f"run.root={options.out.resolve()}", f"run.name={name}", "wandb.mode=disabled"]
    shutil.rmtree(options.out / name, ignore_errors=True)
    start = time.time()
    done = subprocess.run([sys.executable, "train.py", *words(options, *places, *more)], cwd=PROGRAM)
    seconds = time.time() - start
    if done.returncode:
        raise RuntimeError(f"train.py left with {done.returncode}")
    return {**reached(options.out / name, wanted), "command_seconds": seconds}


def reached(run_dir: Path, wanted: float) -> dict[str, Any]:
    """From metrics.jsonl: the last accuracy, and the seconds from the first step's begin to the accuracy wanted."""
    rows = read_metrics(run_dir)
    first = next(row for row in rows if "train/loss" in row)
    begin = first["time"] - first["samples"] / first["images_per_second"]
    evaluated = [row for row in rows if "val/top1" in row]
    there = next((row["time"] - begin for row in evaluated if row["val/top1"] >= wanted), None)
    rates = sorted(row["images_per_second"] for row in rows if "train/loss" in row)
    return {
        "top1": evaluated[-1]["val/top1"],
        f"seconds_to_{wanted:g}": there,
        "training_seconds": evaluated[-1]["time"] - begin,
        "images_per_second": rates[len(rates) // 2],
    }


def verify(options: Options) -> dict[str, Any]:
    """`resnet verify-resume` of the recipe with deterministic=true."""
    command = [sys.executable, "-m", "resnet", "verify-resume", *words(options, "deterministic=true"), "--ranks", "1"]
    done = subprocess.run(command, cwd=PROGRAM, capture_output=True, text=True)
    print(done.stdout[-3000:], done.stderr[-3000:])
    said = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return {"equal" if done.returncode == 0 else "failed": said[-1] if said else f"code {done.returncode}"}


if __name__ == "__main__":
    raise SystemExit(main("learns", run))
