"""A sweep's directory: what is to be tried, which trials are there as runs, and which are missing."""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from launch.runs.here import visible_gpus
from launch.runs.state import rows
from launch.sweep.arrays import settle_arrays
from launch.sweep.halving import is_pruned
from launch.sweep.study import trial_name as numbered
from launch.sweep.sweep_json import sweep_json, sweep_of
from launch.sweep.trials import Trial
from recipes.load import load
from recipes.plugin_files import copy_of, is_edited, naming_copies, with_own_copies
from recipes.schema.plugins import PLUGINS
from recipes.schema.recipe import NOT_TRAINING, Recipe
from resnet.rundir.attempts import ENDS, end_file
from resnet.rundir.find import is_sweep
from resnet.rundir.sweep.sweep_file import read_sweep, write_sweep
from slurm.profile import Profile

AUTO = "auto"


class Place(NamedTuple):
    """Where and how trials run."""

    cluster: str
    profile: Profile | None
    """None: here."""
    cwd: Path
    """What relative paths in recipes start from."""
    parallel: int | str | None = None
    """Trials at once; None: one here, as many as the cluster runs there; AUTO: there, by what is idle."""


class SweepDir:
    """A sweep's directory, in the hands of one `launch` at a time (a context manager)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {}
        if is_sweep(path):
            self.content = read_sweep(path)

    def __enter__(self) -> SweepDir:
        if not self.content and self.path.exists() and {entry.name for entry in self.path.iterdir()} - {"slurm"}:
            raise ValueError(f"{self.path} already exists and is not a sweep: choose another --name")
        (self.path / "slurm").mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / "slurm" / "sweep.lock", "w")
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ValueError(f"another `launch` is working on {self.path}") from None
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

    def trial(self, name: str) -> dict[str, Any]:
        return next(trial for trial in self.trials if trial["name"] == name)

    def number_of(self, trial: Mapping[str, Any]) -> int:
        return [other["name"] for other in self.trials].index(trial["name"])

    def update(self, content: Mapping[str, Any], listed: Iterable[Trial] | None, count: int | None) -> None:
        """Note what is asked for: more values of what was swept make more trials, and those that are there stay.

        Raises ValueError where it is another sweep: its results would not compare.
        """
        self._refuse_another(content)
        there: list[dict[str, Any]] = self.content.get("trials", [])
        if listed is not None:
            by_point = {json.dumps(trial["point"], sort_keys=True): trial for trial in there}
            for trial in listed:
                known = by_point.get(json.dumps(trial.point, sort_keys=True))
                if known is not None and known["digest"] != trial.digest:
                    raise ValueError(f"{self.path}: {known['name']} was made of another recipe; choose another --name")
                if known is None:
                    fields = {"name": trial.name, "digest": trial.digest, "point": trial.point}
                    there = [*there, {**fields, "words": list(trial.words)}]
        else:
            assert count is not None
            new = range(len(there), count)
            there = [*there, *({"name": numbered(number), "digest": None, "point": None} for number in new)]
        before = self.content.get("parameters", {})
        both = {key: _joined(before.get(key), fields) for key, fields in content["parameters"].items()}
        self.content = {"created": time.time(), **self.content, **content, "parameters": both, "trials": there}
        write_sweep(self.path, self.content)

    def _refuse_another(self, content: Mapping[str, Any]) -> None:
        if not self.content:
            return
        now, before = (comparable(which) for which in (content, self.content))
        if changed := [what for what, value in now.items() if before[what] != value]:
            raise ValueError(
                f"{self.path} is a sweep that differs in {', '.join(changed)}: undo that, or choose another --name "
                "(only more values of the swept keys may be added)"
            )

    def missing(self, failed_only: bool = False) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Trials that are not done and not on their way, and how many others there are by state."""
        settle_arrays(self.path)
        there = [trial for trial in self.trials if (self.path / trial["name"] / "status.json").is_file()]
        found = dict(zip((t["name"] for t in there), rows(self.path / t["name"] for t in there), strict=True))
        todo, others = [], Counter()
        for trial in self.trials:
            row = found.get(trial["name"])
            if row is None:
                todo += [] if failed_only else [trial]
            elif is_pruned(self.path / trial["name"], row["state"]):
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
        if (self.path / PLUGINS).is_dir():
            recipe = naming_copies(recipe, self.path)
        group, tags = recipe.wandb.group or self.path.name, [*recipe.wandb.tags, self.path.name]
        page = self.content.get("wandb_sweep") or {"id": recipe.wandb.sweep}
        wandb = recipe.wandb.model_copy(update={"group": group, "tags": tags, "sweep": page["id"]})
        run = recipe.run.model_copy(update={"root": str(self.path), "name": trial["name"]})
        # That a trial is new is known; in a job, or continued, its directory is there.
        resume = "auto" if recipe.resume == "never" else recipe.resume
        return recipe.model_copy(update={"wandb": wandb, "run": run, "resume": resume})

    def refuse_edited(self, recipes: Iterable[Recipe]) -> None:
        """Raise ValueError where files of plugins are not those that the sweep began with."""
        for plugin in (plugin for recipe in recipes for plugin in recipe.plugins_named().values()):
            if is_edited(plugin, self.path):
                told = f"{plugin.file} is not the file that {self.path} began with"
                raise ValueError(f"{told}: put that back ({copy_of(plugin, self.path)}), or choose another --name")

    def keep_plugins(self, recipes: Iterable[Recipe]) -> None:
        """Copy the files of plugins, so that all trials run the same code, whenever they start."""
        for recipe in recipes:
            with_own_copies(recipe, self.path)

    def prepare(self, trial: Mapping[str, Any]) -> Path:
        """Make the trial's directory ready to be run (again); returns it. Raises ValueError for a wrong recipe."""
        run_dir = self.path / trial["name"]
        (run_dir / "slurm").mkdir(parents=True, exist_ok=True)
        for why in ENDS:
            end_file(run_dir, why).unlink(missing_ok=True)
        if trial.get("words"):
            self.write_recipe(trial)
        return run_dir

    def write_recipe(self, trial: Mapping[str, Any]) -> None:
        """Write the trial's resolved recipe, once and for all: files that its words name may change."""
        file = self.path / trial["name"] / "slurm" / "recipe.yaml"
        if not file.exists():
            # JSON is YAML; a thousand recipes are written in a fraction of the time.
            file.write_text(json.dumps(self.recipe_of(trial).model_dump(mode="json"), indent=1), encoding="utf-8")


def place_here(directory: SweepDir) -> Place:
    """This machine, as the newest command of the sweep used it."""
    told = directory.content["parallel"]
    parallel = told if isinstance(told, int) else 1
    return Place("local", None, Path(directory.content["folder"]), min(parallel, visible_gpus() or parallel))


def cancel_file(sweep_dir: Path) -> Path:
    """The file that tells who runs the trials here to start no more."""
    return sweep_dir / "slurm" / "cancel"


def comparable(content: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for trials to be of one sweep, of the content of sweep.json."""
    fixed = {key: text for key, text in content["fixed"].items() if key.partition(".")[0] not in NOT_TRAINING}
    drawn = content["method"] != "grid"
    # Without what another version may have noted of them.
    known = sweep_json(sweep_of(content))
    return {
        "method": content["method"],
        "fixed keys": fixed,
        "swept keys": sorted(content["parameters"]),
        "distributions": known["parameters"] if drawn else None,
        "metric": (content["metric"], content["goal"]),
        "early stopping": known["early_stop"],
        "--seed": content["seed"] if drawn else None,
    }


def _joined(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> Mapping[str, Any]:
    if before is None or "values" not in before or "values" not in now or now["probabilities"]:
        return {**(before or {}), **now}
    return {**before, **now, "values": [*dict.fromkeys([*before["values"], *now["values"]])]}
