"""Stage *right*: the tests that are marked `gpu`, all files of them side by side."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

from resnet.process.environment import PROGRAM
from tests.bench.gpu.stage import Options, Report, main

QUICK = ("test_steps", "test_numerics")


def run(options: Options, report: Report) -> None:
    folder = PROGRAM / "tests" / "resnet"
    files = sorted([*folder.glob("gpu/test_*.py"), folder / "test_cache.py"])
    running = {file.stem: _start(file, options.out) for file in files if not options.quick or file.stem in QUICK}
    told = False
    while running:
        for name in [name for name, process in running.items() if process.poll() is not None]:
            running.pop(name)
            _tell(name, options.out / f"{name}.xml", report)
        if report.time_is_over and not told:
            told = True
            for name, process in running.items():
                # On a Ctrl-C pytest writes down what it has done.
                process.send_signal(signal.SIGINT)
                report.row(name, failed="not done in time")
        time.sleep(0.1)


def _start(file: Path, out: Path) -> subprocess.Popen[bytes]:
    """pytest of one file, which a crash of another does not end."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", str(file), "--durations=5", "--color=no"]
    command += ["-p", "no:cacheprovider", f"--junitxml={(out / file.stem).resolve()}.xml"]
    with (out / f"{file.stem}.txt").open("w") as output:
        return subprocess.Popen(command, cwd=PROGRAM, stdout=output, stderr=output)


def _tell(name: str, results: Path, report: Report) -> None:
    if not results.is_file():
        report.row(name, failed=f"pytest ended without results: see {name}.txt")
        return
    report.row(name, **counts(results))
    for test, why in failures(results):
        report.row(f"{name}: {test}", failed=why)


def counts(results: Path) -> dict[str, int | float]:
    suite = next(ElementTree.parse(results).iter("testsuite"))
    total, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    seconds = float(suite.attrib["time"])
    return {"passed": total - skipped - failed, "failing": failed, "skipped": skipped, "seconds": seconds}


def failures(results: Path) -> list[tuple[str, str]]:
    """Names of tests, and the first line of why each failed."""
    found = []
    for case in ElementTree.parse(results).iter("testcase"):
        for outcome in (*case.iter("failure"), *case.iter("error")):
            found.append((case.attrib["name"], outcome.attrib.get("message", "").split("\n")[0][:200]))
    return found


if __name__ == "__main__":
    raise SystemExit(main("right", run))
