"""The training of `resnet replay`: a run of its own in a scratch folder that goes on from a copy of a checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recipes.load import load_file
from recipes.plan import Plan
from recipes.schema.plugins import PLUGINS
from recipes.schema.recipe import Recipe
from recipes.versions import FORMAT
from resnet.build import takes_cpu
from resnet.checkpoint.commit import name_of
from resnet.checkpoint.resume import data_digest
from resnet.data.sources.source import Source
from resnet.pretrained import word_of_weights
from resnet.process.command_lines import TRAIN, accelerate_argv
from resnet.process.environment import ATTEMPT, is_launchers
from resnet.process.processes import kill_all
from resnet.rundir.metrics_log import read_metrics
from resnet.tools.difference import line_of

NAME = "replay"
"""The scratch run's own name."""


class Steps(NamedTuple):
    """Which steps of which run are trained again."""

    run_dir: Path
    start: Path
    """The checkpoint that they begin from."""
    first: int
    last: int
    """Steps done at the end."""


def scratch_run(steps: Steps, rest: dict[str, Any], recipe: dict[str, Any], folder: Path) -> Path:
    """Make a run directory that goes on where the checkpoint was taken: its recipe, the log up to there, and it.

    rest: of the checkpoint. recipe: the keys to train by. Nothing of it is the run's own file: a link would be, to
    whoever wrote into it.
    """
    run_dir = folder / NAME
    if run_dir.exists():
        raise ValueError(f"{run_dir} is there already: give another --keep")
    (run_dir / "checkpoints").mkdir(parents=True)
    # JSON is YAML. With a status it is a run's own, of which keys of another version are lifted or ignored.
    (run_dir / "recipe.yaml").write_text(json.dumps({"format": FORMAT, **recipe, "resume": "auto"}, indent=1))
    (run_dir / "status.json").write_text("{}")
    shutil.copytree(steps.start, run_dir / "checkpoints" / name_of(steps.first))
    if (steps.run_dir / PLUGINS).is_dir():
        shutil.copytree(steps.run_dir / PLUGINS, run_dir / PLUGINS)
    log = steps.run_dir / "metrics.jsonl"
    with contextlib.suppress(FileNotFoundError), log.open("rb") as file:
        (run_dir / "metrics.jsonl").write_bytes(file.read(rest["log_length"]))
    return run_dir


def check_data(train: Source, rest: dict[str, Any], recipe: Recipe, run_dir: Path) -> None:
    """Raise ValueError where these are not the images, by number and class, that the checkpoint was trained on."""
    if rest["data"] != data_digest(train):
        raise ValueError(
            f"{recipe.data.train} is not the data that {run_dir} was trained on (other images or classes): give "
            "data.train=... where that lies"
        )


def ranks_here(recipe: Recipe, slots: int, wanted: int) -> int:
    """As many ranks as the run had, or the most that this machine's GPUs and the batch allow."""
    if takes_cpu(recipe):
        return wanted
    import torch

    most = min(wanted, torch.cuda.device_count())
    return max(number for number in range(1, most + 1) if slots % number == 0)


def words_of(steps: Steps, plan: Plan, run_dir: Path, overrides: Sequence[str], log_every: int | None) -> list[str]:
    """The command line of the training, after train.py."""
    # An end of its own would be logged and evaluated as none of the run's was: it ends a step later, and is not let
    # come there.
    end = min(steps.last + 1, plan.end_step)
    words = [f"recipe={run_dir}/recipe.yaml", *overrides, f"max_steps={end}", f"checkpoint.every={steps.last} steps"]
    # The last one wanted, and one more by the time that somebody looks.
    words += ["checkpoint.keep=2", "checkpoint.weights_every=null", "profile=null", "wandb.mode=disabled"]
    words += [f"log_every={log_every}"] if log_every else []
    if plan.recipe.distill:
        words.append(word_of_weights("distill.teacher", plan.recipe.distill.teacher, steps.run_dir.parent))
    return [*words, "progress=off", f"run.root={run_dir.parent}", f"run.name={run_dir.name}"]


def train_again(words: list[str], ranks: int, threads: int | None, done: Callable[[], bool], output: Path) -> None:
    """Train in processes of their own until `done`; raises ValueError with the last lines where they fail.

    threads: of each rank on a CPU; None: as the machine gives.
    """
    environment = {name: value for name, value in os.environ.items() if not is_launchers(name) and name != ATTEMPT}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, str(TRAIN), *words] if ranks == 1 else [*accelerate_argv(ranks), *words]
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
    try:
        while process.poll() is None and not done():
            time.sleep(0.1)
    finally:
        # All is on the disk: what would come after, an evaluation and a report, is not wanted.
        kill_all(process)
    if not done():
        last = "\n".join(output.read_text(errors="replace").splitlines()[-15:])
        raise ValueError(f"the steps could not be trained again (code {process.returncode}):\n{last}")


def is_done(run_dir: Path, last: int, awaited: set[tuple[int, str]]) -> bool:
    """Whether the checkpoint of the last step is there, and the lines of the log that the run has of it."""
    if not (run_dir / "checkpoints" / name_of(last)).is_dir():
        return False
    return not awaited or awaited <= {line_of(row) for row in read_metrics(run_dir)}


def recipe_at(rest: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """The keys that a checkpoint was trained by; version 0.1.0 did not keep them in it, and the run's own stand in."""
    return rest.get("recipe") or load_file(run_dir / "recipe.yaml").recipe.model_dump(mode="json")
