"""What a run directory holds that explains how the run is, each file read once and only where it is asked for."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from launch.runs.job_record import Job, read_job, requests_of
from launch.runs.logs import attempts, first_failure, newest_batch_files, tail
from launch.runs.state import rows
from resnet.rundir.attempts import read_attempts
from resnet.rundir.evaluation import read_evaluation
from resnet.rundir.failures import read_failures
from resnet.rundir.find import ROOT, is_sweep
from resnet.rundir.metrics_log import read_metrics
from resnet.rundir.provenance import read_provenance
from resnet.rundir.stages import read_stages
from resnet.rundir.status import status_or_nothing
from resnet.rundir.sweep.sweep_file import read_sweep

if TYPE_CHECKING:
    from recipes.schema.recipe import Recipe

LOG_LINES = 400
"""Of the end of a log that is searched for what went wrong."""
MOST_LOGS = 40
"""That are searched."""


class Text(NamedTuple):
    """Lines that may say what went wrong, and where they are from."""

    place: str
    lines: list[str]


class Facts:
    """What is known of a run. What is missing or cannot be read is empty, or None."""

    def __init__(self, run_dir: Path, row: Mapping[str, Any] | None = None) -> None:
        """row: of the run, where Slurm was asked for many at once; it is then asked no more."""
        self.run_dir = run_dir
        self.now = time.time()
        self.may_ask = row is None
        if row is not None:
            self.row = dict(row)

    @cached_property
    def row(self) -> dict[str, Any]:
        """As `launch status --json` has it: the run's own word put together with Slurm's."""
        return rows([self.run_dir])[0]

    @property
    def state(self) -> str:
        return self.row["state"]

    @cached_property
    def typed(self) -> str:
        """What a user types for the run: its name where that is found, else its directory."""
        return shlex.quote(self.run_dir.name if self.run_dir.parent == Path(ROOT) else str(self.run_dir))

    @cached_property
    def status(self) -> dict[str, Any]:
        return status_or_nothing(self.run_dir)

    @cached_property
    def recipe(self) -> Recipe | None:
        # It takes most of a second, which not every cause needs.
        from recipes.load import load_file

        for file in (self.run_dir / "recipe.yaml", self.run_dir / "slurm" / "recipe.yaml"):
            if file.is_file():
                with contextlib.suppress(ValueError, OSError):
                    return load_file(file).recipe
        return None

    @cached_property
    def job(self) -> Job | None:
        """Of several by which the run waits the one that its row is of."""
        with contextlib.suppress(ValueError, OSError):
            told = (self.row["job_id"], self.row["cluster"])
            of_row = (job for job in requests_of(self.run_dir) if (job.job_id, job.cluster) == told)
            return next(of_row, None) or read_job(self.run_dir)
        return None

    @property
    def client(self) -> dict[str, str]:
        """Variables by which Slurm's commands reach the job's cluster."""
        return self.job.client if self.job else {}

    @cached_property
    def swept(self) -> frozenset[str]:
        """Keys that a sweep, of which the run is a trial, tries values of."""
        with contextlib.suppress(ValueError, OSError, KeyError, TypeError):
            if is_sweep(self.run_dir.parent):
                return frozenset(read_sweep(self.run_dir.parent)["parameters"])
        return frozenset()

    @cached_property
    def attempts(self) -> list[dict[str, Any]]:
        """Those under Slurm, as the batch script noted them."""
        return read_attempts(self.run_dir)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        with contextlib.suppress(ValueError, OSError):
            return read_provenance(self.run_dir)
        return {}

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        with contextlib.suppress(ValueError, OSError):
            return read_metrics(self.run_dir)
        return []

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        with contextlib.suppress(ValueError, OSError):
            return read_evaluation(self.run_dir)
        return {}

    @cached_property
    def stages(self) -> dict[int, dict[str, Any]]:
        """What rank 0 spent its time on, by attempt."""
        count = int(self.row["attempts"] or 0)
        found = {number: read_stages(self.run_dir, number) for number in range(1, count + 1)}
        return {number: stages for number, stages in found.items() if stages}

    @cached_property
    def failures(self) -> list[dict[str, Any]]:
        """What ranks of the newest attempt left when they failed."""
        start = ((self.provenance.get("attempts") or [{}])[-1].get("start") or 0) - 60
        numbers = [attempt["attempt"] for attempt in self.attempts[-1:]]
        folders = [self.run_dir / "logs", *(self.run_dir / "logs" / f"attempt-{number}" for number in numbers)]
        found = [record for folder in folders for record in read_failures(folder)]
        return sorted((record for record in found if record["time"] > start), key=lambda record: record["time"])

    @property
    def first_record(self) -> dict[str, Any] | None:
        """What the rank left with which it began, as far as one did."""
        own = [record for record in self.failures if record.get("own_fault") is not False]
        first = self.first_failure[0] if self.first_failure else None
        return next((record for record in own if record["rank"] == first), own[0] if own else None)

    @cached_property
    def first_failure(self) -> tuple[int, str] | None:
        """The rank that failed first, and how, in a line."""
        return first_failure(self.run_dir)

    @cached_property
    def log_texts(self) -> list[Text]:
        """The ends of the newest attempt's logs: that of the rank that failed first, of rank 0, of the others."""
        first = [self.first_failure[0]] if self.first_failure else []
        number = attempts(self.run_dir)[-1:]
        folders = [self.run_dir / "logs" / f"attempt-{one}" for one in number] + [self.run_dir / "logs"]
        files = [
            file for folder in folders for file in sorted(folder.glob("*.log"), key=lambda file: file.stat().st_mtime)
        ]
        order = [*(f"rank-{rank}.log" for rank in first), "rank-0.log"]
        files.sort(key=lambda file: order.index(file.name) if file.name in order else len(order))
        return [self._text(file) for file in files[:MOST_LOGS]]

    @cached_property
    def batch_texts(self) -> list[Text]:
        """The end of what the batch script printed since the newest attempt began, and srun and Slurm with it."""
        return [self._newest(file) for file in newest_batch_files(self.run_dir)]

    def _newest(self, file: Path) -> Text:
        """Of a batch script's log, which is of all starts of its job."""
        last = self.attempts[-1] if self.attempts else {}
        if not file.name.startswith(f"{last.get('job_id')}_"):
            return self._text(file)
        if "log_end" in last and self.row["failure"] != "budget":
            # A start that failed before it was an attempt: of the end of the one before Slurm alone tells as late.
            later = self._text(file, last["log_end"])
            if any("*** " not in line for line in later.lines):
                return later
        return self._text(file, last.get("log") or 0)

    def _text(self, file: Path, begin: int = 0) -> Text:
        return Text(str(file.relative_to(self.run_dir)), tail(file, LOG_LINES, begin))
