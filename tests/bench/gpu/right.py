"""Stage *right*: the tests that are marked `gpu`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from resnet.process.environment import PROGRAM
from tests.bench.gpu.stage import Options, Report, main


def run(options: Options, report: Report) -> None:
    results = options.out / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/resnet", "--durations=10", "--color=no"]
    subprocess.run([*command, "-p", "no:cacheprovider", f"--junitxml={results.resolve()}"], cwd=PROGRAM)
    report.row("tests", **counts(results))
    for name, why in failures(results):
        report.row(name, failed=why)


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
