"""Stage *right*: the tests that are marked `gpu`, all files of them side by side."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

from resnet.process.environment import PROGRAM
from tests.bench.gpu.stage import Options, Report, main

QUICK = ("test_steps", "test_numerics")


def run(options: Options, report: Report) -> None:
    folder = PROGRAM / "tests" / "resnet" / "gpu"
    files = [file for file in sorted(folder.glob("test_*.py")) if not options.quick or file.stem in QUICK]
    running = {file.stem: _start(file, options.out) for file in files}
    while running:
        for name in [name for name, process in running.items() if process.poll() is not None]:
            code = running.pop(name).returncode
            results = options.out / f"{name}.xml"
            # 5: it has none that are marked so.
            if code != 5:
                report.attempt(name, lambda name=name, results=results: _tell(name, results, report))
        time.sleep(0.1)


def _start(file: Path, out: Path) -> subprocess.Popen[bytes]:
    """pytest of one file, which a crash of another does not end."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", str(file), "--durations=5", "--color=no"]
    command += ["-p", "no:cacheprovider", f"--junitxml={(out / file.stem).resolve()}.xml"]
    with (out / f"{file.stem}.txt").open("w") as output:
        return subprocess.Popen(command, cwd=PROGRAM, stdout=output, stderr=output)


def _tell(name: str, results: Path, report: Report) -> None:
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
