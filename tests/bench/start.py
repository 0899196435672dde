"""How long a person waits: for a mistake to be told, for the first step, and for the prompt after the last line.

    python -m tests.bench.start [--rounds N] [--program FOLDER ...] [KEY=VALUE ...]

Times `python train.py recipe=quickstart max_steps=2` as it is typed, W&B offline. --program: other checkouts, which
take turns with this one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from resnet.process.environment import PROGRAM
from tests.bench.machine import facts, headline


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.start", description="time starts and ends")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--program", nargs="+", type=Path, default=[], help="other checkouts")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args(arguments)
    print(headline(facts()))
    programs = [PROGRAM, *given.program]
    found: dict[Path, list[dict[str, float]]] = {program: [] for program in programs}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.rounds + 1):
            for program in programs:
                seconds = one_start(program, Path(folder), f"{program.name}-{number}", given.words)
                # In the first round the images are drawn, and files come from the disk.
                if number:
                    found[program].append(seconds)
    for program, rounds in found.items():
        print(f"\n{program}, seconds, median of {given.rounds} (least to most)")
        for what in rounds[0]:
            values = [seconds[what] for seconds in rounds]
            print(f"  {what:42}{statistics.median(values):7.2f}  ({min(values):.2f} to {max(values):.2f})")
    return 0


def one_start(program: Path, root: Path, name: str, words: list[str]) -> dict[str, float]:
    """Seconds of a mistake, and of a run of two steps."""
    start = time.perf_counter()
    _start(program, root, "recipe=quickstart", "optimizer.lrr=1").communicate()
    mistake = time.perf_counter() - start
    fixed = ["max_steps=2", "log_every=1", "wandb.mode=offline", f"run.root={root}", f"run.name={name}"]
    start = time.perf_counter()
    process = _start(program, root, "recipe=quickstart", f"data.train={root}/shapes", *fixed, *words)
    printed: list[float] = []
    reader = threading.Thread(target=lambda: [printed.append(time.perf_counter()) for _ in process.stdout or ()])
    reader.start()
    while process.poll() is None and not _has_stepped(root / name / "status.json"):
        time.sleep(0.01)
    stepped = time.perf_counter()
    process.wait()
    ended = time.perf_counter()
    reader.join()
    if process.returncode:
        raise RuntimeError(f"{program}: train.py left with {process.returncode}")
    return {
        "a mistake on the command line is told": mistake,
        "first step done": stepped - start,
        "from the last line to the prompt": ended - printed[-1],
        "two steps, evaluation, report: all of it": ended - start,
    }


def _start(program: Path, folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(program / "train.py"), *words]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _has_stepped(status: Path) -> bool:
    try:
        return json.loads(status.read_text()).get("step", 0) >= 1
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    raise SystemExit(main())
