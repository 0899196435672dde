"""A sweep's directory: what is to be tried, which trials are there as runs, and which are missing."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from launch.jobs import Job
from launch.run_state import rows
from launch.search import ask, should_stop, tell
from launch.search import trial_name as numbered
from recipes.load import load
from recipes.rundir import read_status, to_json, write_atomic
from recipes.schema import Recipe
from recipes.sweep import Trial
from slurm.attempts import ENDS, end_file
from slurm.profile import Profile
from slurm.queue import queued

CANCEL_SECONDS = 60.0


class Place(NamedTuple):
    """Where and how trials run."""

    cluster: str
    profile: Profile | None
    """None: here."""
    cwd: Path
    """What relative paths in recipes start from."""
    max_parallel: int | None = None
    jobs: int = 1


class SweepDir:
    """A sweep's directory, in the hands of one `launch` at a time (a context manager)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {}
        if (path / "sweep.json").is_file():
            self.content = json.loads((path / "sweep.json").read_text(encoding="utf-8"))

    def __enter__(self) -> SweepDir:
        fresh = not self.path.exists()
        if not fresh and not self.content:
            raise ValueError(f"{self.path} is there and is no sweep: choose another --name")
        (self.path / "slurm").mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / "slurm" / "sweep.lock", "w")
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ValueError(f"another `launch` works on {self.path} at this moment") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()
        if not self.content:
            with contextlib.suppress(OSError):
                (self.path / "slurm" / "sweep.lock").unlink()
                (self.path / "slurm").rmdir()
                self.path.rmdir()

    @property
    def trials(self) -> list[dict[str, Any]]:
        return self.content["trials"]

    @property
    def is_search(self) -> bool:
        """Whether a trial's point is chosen when it starts."""
        return self.content["method"] == "bayes"

    def number_of(self, trial: Mapping[str, Any]) -> int:
        return [other["name"] for other in self.trials].index(trial["name"])

    def update(self, content: Mapping[str, Any], listed: Iterable[Trial] | None, count: int | None) -> None:
        """Note what is asked for; trials that are there already, by what they train, keep their names."""
        known = {trial["digest"]: trial for trial in self.content.get("trials", [])}
        if self.content and (self.content["method"] == "bayes") != (count is not None):
            raise ValueError(f"{self.path} is a sweep of method {self.content['method']}: choose another --name")
        if listed is not None:
            for trial in listed:
                fields = {"name": trial.name, "digest": trial.digest, "point": trial.point, "words": list(trial.words)}
                known.setdefault(trial.digest, fields)
            there = list(known.values())
        else:
            assert count is not None
            there = self.content.get("trials", [])
            new = range(len(there), count)
            there = [*there, *({"name": numbered(number), "digest": None, "point": None} for number in new)]
        self.content = {"created": time.time(), **self.content, **content, "trials": there}
        self.write()

    def write(self) -> None:
        write_atomic(self.path / "sweep.json", to_json(self.content, indent=1) + "\n")

    def missing(self, failed_only: bool = False) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Trials that are not done and not on their way, and how many others there are by state."""
        self._settle_arrays()
        there = [trial for trial in self.trials if (self.path / trial["name"] / "status.json").is_file()]
        found = dict(zip((t["name"] for t in there), rows(self.path / t["name"] for t in there), strict=True))
        todo, others = [], Counter()
        for trial in self.trials:
            row = found.get(trial["name"])
            if row is None:
                todo += [] if failed_only else [trial]
            elif end_file(self.path / trial["name"], "pruned").exists():
                others["pruned"] += 1
            elif row["state"] == "finished" or not (row["over"] or self._was_never_sent(row)):
                others[row["state"]] += 1
            elif row["state"] == "failed" or not failed_only:
                todo.append(trial)
        return todo, dict(others)

    def _was_never_sent(self, row: Mapping[str, Any]) -> bool:
        return row["state"] == "queued" and row["job_id"] is None

    def recipe_of(self, trial: Mapping[str, Any]) -> Recipe:
        """The trial's recipe, of which the sweep is the folder and, in W&B, the group."""
        recipe = load(trial["words"], self.content.get("origins") or {}).recipe
        wandb = recipe.wandb.model_copy(
            update={"group": recipe.wandb.group or self.path.name, "tags": [*recipe.wandb.tags, self.path.name]}
        )
        run = recipe.run.model_copy(update={"root": str(self.path), "name": trial["name"]})
        return recipe.model_copy(update={"wandb": wandb, "run": run})

    def prepare(self, trial: Mapping[str, Any]) -> Path:
        """Make the trial's directory ready to be run (again); returns it."""
        run_dir = self.path / trial["name"]
        (run_dir / "slurm").mkdir(parents=True, exist_ok=True)
        for why in ENDS:
            end_file(run_dir, why).unlink(missing_ok=True)
        if trial.get("words"):
            # JSON is YAML; a thousand recipes are written in a fraction of the time.
            text = json.dumps(self.recipe_of(trial).model_dump(mode="json"), indent=1)
            (run_dir / "slurm" / "recipe.yaml").write_text(text, encoding="utf-8")
        return run_dir

    # The record of arrays: what was sent before its id is known, then the id.

    @property
    def _arrays(self) -> Path:
        return self.path / "slurm" / "arrays.jsonl"

    def note_array(self, **fields: Any) -> None:
        with open(self._arrays, "a", encoding="utf-8") as file:
            file.write(to_json(fields) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def arrays(self) -> dict[str, dict[str, Any]]:
        """By name: the trials of each array, and its job's id unless the command that sent it died over it."""
        found: dict[str, dict[str, Any]] = {}
        for line in self._arrays.read_text(encoding="utf-8").splitlines() if self._arrays.is_file() else ():
            with contextlib.suppress(ValueError):
                fields = json.loads(line)
                found.setdefault(fields["name"], {}).update(fields)
        return found

    def _settle_arrays(self) -> None:
        """See to arrays that were sent by a command that died before it could note their ids.

        Where submitit had not come to place what all tasks are to call, those would fail: the array is cancelled.
        """
        lost = {name: array for name, array in self.arrays().items() if "job_ids" not in array}
        if not lost:
            return
        ids_by_name: dict[str, set[str]] = {}
        for job_id, job in (queued() or {}).items():
            ids_by_name.setdefault(job.name, set()).add(job_id.partition("_")[0])
        for name, array in lost.items():
            job_ids: list[str] = []
            for base in ids_by_name.get(name, ()):
                number = len(array["trials"])
                found = [base] if number == 1 else [f"{base}_{index}" for index in range(number)]
                if all((self.path / "slurm" / f"{job_id}_submitted.pkl").exists() for job_id in found):
                    job_ids = found
                else:
                    _cancel(base)
            for trial, job_id in zip(array["trials"], job_ids, strict=False):
                write_job(self.path / trial, Job(**{**array["job"], "job_id": job_id}))
            self.note_array(name=name, job_ids=job_ids)


def _cancel(job_id: str) -> None:
    """Cancel a job and see it end: its runs are to be free for another."""
    subprocess.run(["scancel", job_id], timeout=60)
    deadline = time.monotonic() + CANCEL_SECONDS
    while time.monotonic() < deadline:
        if all(job.over for found, job in (queued() or {}).items() if found.partition("_")[0] == job_id):
            return
        time.sleep(0.5)
    raise ValueError(f"job {job_id}, of a command that was killed, does not end: scancel it, then try again")


def write_job(run_dir: Path, job: Job) -> None:
    (run_dir / "slurm" / "job.json").write_text(json.dumps(job.__dict__, indent=1), encoding="utf-8")


def ask_trial(directory: SweepDir, trial: Mapping[str, Any]) -> dict[str, Any]:
    """A trial of a search with the point it is to try, which stays its own for ever."""
    ask(directory.path, directory.number_of(trial))
    return {**trial, **json.loads((directory.path / trial["name"] / "slurm" / "point.json").read_text())}


def prune(sweep_dir: Path, trial: str) -> bool:
    """Whether early stopping ends a trial now (and not before)."""
    file = end_file(sweep_dir / trial, "pruned")
    if file.exists():
        return False
    stop = should_stop(sweep_dir, trial)
    if stop is not None:
        write_atomic(file, to_json({"rung": stop[0], "value": stop[1], "time": time.time()}))
    return stop is not None


def finish_trial(directory: SweepDir, trial: Mapping[str, Any]) -> None:
    """Tell the search, and early stopping, of a trial that has ended."""
    run_dir = directory.path / trial["name"]
    state = read_status(run_dir).get("state")
    if directory.content["early_stop"] and state == "finished":
        should_stop(directory.path, trial["name"])
    pruned = end_file(run_dir, "pruned").exists()
    end = "pruned" if pruned else state
    if directory.is_search and (end == "pruned" or end == "finished" or end == "failed"):
        tell(directory.path, directory.number_of(trial), end)
