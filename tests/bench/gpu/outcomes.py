"""A plugin of pytest: each test's outcome as it ends, so that a run that is killed leaves what it has found."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

VARIABLE = "BENCH_OUTCOMES"
"""Of the environment: the file."""


class Outcome(NamedTuple):
    test: str
    outcome: str
    """passed, failed or skipped."""
    seconds: float
    why: str
    """First line of what went wrong."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    crash = getattr(report.longrepr, "reprcrash", None)
    why = str(crash.message if crash else report.longrepr or "").strip().partition("\n")[0]
    outcome = Outcome(report.nodeid.rpartition("::")[2], report.outcome, report.duration, why[:200])
    with open(os.environ[VARIABLE], "a") as file:
        file.write(json.dumps(outcome) + "\n")


def read_outcomes(file: Path) -> list[Outcome]:
    lines = file.read_text().splitlines() if file.is_file() else []
    return [Outcome(*json.loads(line)) for line in lines]


def counts(outcomes: list[Outcome]) -> dict[str, Any]:
    number = Counter(one.outcome for one in outcomes)
    # Not "failed", by which the bench knows a row that is a problem: each such test has a row of its own.
    found = {"passed": number["passed"], "failing": number["failed"], "skipped": number["skipped"]}
    return found | {"seconds": sum(one.seconds for one in outcomes)}
