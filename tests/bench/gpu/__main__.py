"""What this program gives on a GPU, in stages of which a failing one does not stop the others.

    python -m tests.bench.gpu [--out FOLDER] [--images FOLDER] [--cifar FOLDER] [--only|--skip STAGE ...] [--quick]

On one GPU: of several ranks it tells nothing.

All of it takes less than 8 minutes on an H100, with --quick less than 3; needs no network. --device cpu --quick goes
through the same in miniature, so that a fault of the bench is not found on a GPU's time. Each stage is a process with
a time limit; what it prints is in FOLDER/STAGE.txt, what it finds in FOLDER/STAGE.jsonl, all together in report.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from resnet.process.environment import PROGRAM
from tests.bench.gpu.stage import describe, parser
from tests.bench.machine import facts, headline


class Stage(NamedTuple):
    what: str
    seconds: int
    """Most that it may take."""
    quick: int
    """The same with --quick, which leaves it out where there is none."""


STAGES = {
    "here": Stage("what is here", 25, 20),
    "right": Stage("the tests of a GPU", 190, 40),
    "speed": Stage("images a second", 120, 45),
    "host": Stage("where the time goes", 40, 25),
    "learns": Stage("CIFAR-10 to 94%", 90, 30),
    "saves": Stage("checkpoints", 40, 20),
    "compiled": Stage("images a second, compiled", 150, 0),
    "further": Stage("CIFAR-10 to 96%", 150, 0),
}
"""In order of worth."""
_TOTAL, _QUICK_TOTAL = 480, 180
"""Seconds that all of it may take; what is not begun then is left out."""
_CPU_SECONDS = 600
"""Most that a stage may take on a CPU, where all is in miniature, and slow nevertheless."""
_GRACE = 10
"""Seconds between what a stage is asked to keep to and its end."""


def main(arguments: list[str] | None = None) -> int:
    options = parser("python -m tests.bench.gpu")
    options.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE")
    options.add_argument("--skip", nargs="+", choices=STAGES, default=[], metavar="STAGE")
    given = options.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no GPU here (nvidia-smi says what there is); --device cpu --quick tries the bench itself")
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    found = facts()
    print(headline(found), flush=True)
    report: dict[str, Any] = {"machine": found, "stages": {}}
    deadline = time.monotonic() + (_QUICK_TOTAL if given.quick else _TOTAL)
    for name in (name for name in STAGES if name in given.only and name not in given.skip):
        limit = _limit(STAGES[name], given, deadline)
        if limit < 2 * _GRACE:
            print(f"\n{STAGES[name].what} ({name}) is left out: it would take too long")
            continue
        report["stages"][name] = run_stage(name, given, limit)
        (given.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print_speeds(row for stage in report["stages"].values() for row in stage["rows"])
    print(f"\nall of it: {given.out / 'report.json'}")
    return int(any(stage["problem"] for stage in report["stages"].values()))


def print_speeds(rows: Iterable[dict[str, Any]]) -> None:
    """A table of what has a speed."""
    columns = {"images/s": "images_per_second", "/ bare": "speed_to_bare", "/ features": "speed_to_bare_features"}
    columns |= {"of the bound": "share_of_bound", "host ms": "host_ms", "step GB": "step_memory_gb"}
    measured = [row for row in rows if "images_per_second" in row]
    width = max((len(row["what"]) for row in measured), default=0)
    if measured:
        print(f"\n{'':{width}}{''.join(f'{head:>13}' for head in columns)}")
    for row in measured:
        cells = (f"{row[key]:13.3f}" if key in row else " " * 13 for key in columns.values())
        print(f"{row['what']:{width}}{''.join(cells)}")


def _limit(stage: Stage, given: Any, deadline: float) -> float:
    """Seconds for a stage."""
    if given.device == "cpu":
        return _CPU_SECONDS
    return min(stage.quick if given.quick else stage.seconds, deadline - _GRACE - time.monotonic())


def run_stage(name: str, given: Any, limit: float) -> dict[str, Any]:
    """Run a stage in a process of its own, print what it found, and return that, with its seconds and its problem."""
    print(f"\n{STAGES[name].what} ({name}, at most {limit:.0f} s)", flush=True)
    start, output = time.monotonic(), given.out / f"{name}.txt"
    problem = _run(_command(name, given, limit - _GRACE), output, limit)
    seconds = time.monotonic() - start
    rows = _rows(given.out / f"{name}.jsonl")
    for row in rows:
        print(f"  {describe(row)}")
    problem = problem or next((row["what"] for row in rows if "failed" in row), "")
    print(f"  {seconds:.0f} s{f'; PROBLEM: {problem}, see {output}' if problem else ''}", flush=True)
    return {"seconds": seconds, "problem": problem, "rows": rows}


def _command(name: str, given: Any, seconds: float) -> list[str]:
    # From wherever this was started: a stage runs in the program's folder.
    paths = {key: path.resolve() for key in ("out", "images", "cifar") if (path := getattr(given, key))}
    places = [word for key, path in paths.items() for word in (f"--{key}", str(path))]
    options = ["--device", given.device, "--seconds", str(seconds), *places]
    module = f"tests.bench.gpu.{name}"
    return [sys.executable, "-m", module, *options, *(["--quick"] if given.quick else [])]


def _run(command: list[str], output: Path, limit: float) -> str:
    """What went wrong; nothing where all went well. Ends all processes of the stage when its time is over."""
    with output.open("w") as file:
        process = subprocess.Popen(command, cwd=PROGRAM, stdout=file, stderr=file, start_new_session=True)
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        # Its group too where it has ended by itself: a test that was killed may have left what it had started.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if code is None:
        # A training in a session of its own was not killed: it is short, or notices that it is alone.
        time.sleep(_GRACE)
        return f"not done within {limit:.0f} s"
    return f"left with {code}" if code else ""


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


if __name__ == "__main__":
    raise SystemExit(main())
