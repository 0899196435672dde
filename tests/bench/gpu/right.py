"""Stage *right*: the tests that are marked `gpu`, all files of them side by side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from resnet.process.environment import PROGRAM
from tests.bench.gpu.outcomes import VARIABLE, counts, read_outcomes
from tests.bench.gpu.stage import Options, Report, main

QUICK = {"test_steps": "nothing_waits or channels_last", "test_numerics": "steps_equal"}
"""Files, and which of their tests."""


def run(options: Options, report: Report) -> None:
    folder = PROGRAM / "tests" / "resnet"
    files = sorted([*folder.glob("gpu/test_*.py"), folder / "test_cache.py"])
    running = {file.stem: _start(file, options) for file in files if not options.quick or file.stem in QUICK}
    while running:
        for name, process in list(running.items()):
            if process.poll() is None and report.time_is_over:
                # A signal that asks would be the trainer's that a test is just training with.
                process.kill()
                process.wait()
            if process.poll() is not None:
                del running[name]
                tell(name, options.out / f"{name}.outcomes", report, process.returncode)
        time.sleep(0.1)


def _start(file: Path, options: Options) -> subprocess.Popen[bytes]:
    """pytest of one file, which a crash of another does not end."""
    outcomes = (options.out / f"{file.stem}.outcomes").resolve()
    outcomes.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", str(file), "--durations=5", "--color=no"]
    command += ["-p", "no:cacheprovider", "-p", "tests.bench.gpu.outcomes"]
    command += ["-k", QUICK[file.stem]] if options.quick else []
    with (options.out / f"{file.stem}.txt").open("w") as output:
        environment = os.environ | {VARIABLE: str(outcomes)}
        return subprocess.Popen(command, cwd=PROGRAM, env=environment, stdout=output, stderr=output)


def tell(name: str, file: Path, report: Report, code: int) -> None:
    """A row for a file of tests, and one for each that failed."""
    outcomes = read_outcomes(file)
    failed = [outcome for outcome in outcomes if outcome.outcome == "failed"]
    if outcomes:
        report.row(name, **counts(outcomes))
    for outcome in failed:
        report.row(f"{name}: {outcome.test}", failed=outcome.why)
    if code == -signal.SIGKILL and report.time_is_over:
        report.row(name, failed="not done in time")
    elif code != (1 if failed else 0):
        report.row(name, failed=f"pytest left with {code}: see {name}.txt")


if __name__ == "__main__":
    raise SystemExit(main("right", run))
