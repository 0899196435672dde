"""What a run directory holds that explains how the run is, each file read once and only where it is asked for."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from launch.runs.job_record import Job, read_job
from launch.runs.logs import first_failure, log_file, newest_batch_files, tail
from launch.runs.state import rows
from recipes.load import load_file
from recipes.schema.recipe import Recipe
from resnet.rundir.attempts import read_attempts
from resnet.rundir.evaluation import read_evaluation
from resnet.rundir.failures import read_failures
from resnet.rundir.find import ROOT
from resnet.rundir.metrics_log import read_metrics
from resnet.rundir.provenance import read_provenance
from resnet.rundir.stages import read_stages
from resnet.rundir.status import status_or_nothing

LOG_LINES = 400
"""Of the end of a log that is searched for what went wrong."""


class Facts:
    """What is known of a run. What is missing or cannot be read is empty, or None."""

    def __init__(self, run_dir: Path, row: Mapping[str, Any] | None = None) -> None:
        self.run_dir = run_dir
        self.now = time.time()
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
        for file in (self.run_dir / "recipe.yaml", self.run_dir / "slurm" / "recipe.yaml"):
            if file.is_file():
                with contextlib.suppress(ValueError, OSError):
                    return load_file(file).recipe
        return None

    @cached_property
    def job(self) -> Job | None:
        with contextlib.suppress(ValueError, OSError):
            return read_job(self.run_dir)
        return None

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

    @cached_property
    def first_failure(self) -> tuple[int, str] | None:
        """The rank that failed first, and how, in a line."""
        return first_failure(self.run_dir)

    @cached_property
    def log(self) -> list[str]:
        """The end of the log of the rank that failed first, else of rank 0."""
        rank = self.first_failure[0] if self.first_failure else 0
        file = log_file(self.run_dir, rank) or log_file(self.run_dir, 0)
        return tail(file, LOG_LINES) if file else []

    @cached_property
    def batch_log(self) -> list[str]:
        """The end of what the batch script printed, and srun and Slurm with it."""
        return [line for file in newest_batch_files(self.run_dir) for line in tail(file, LOG_LINES)]
