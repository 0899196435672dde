"""What is wrong with a run before it is sent: checked where it is sent from."""

from __future__ import annotations

import os
from pathlib import Path

from launch.runs.job_record import active_job
from recipes.changes import differences, going_on, refuse_fixed
from recipes.load import Loaded, load_file
from recipes.plugin_check import check_plugin_code
from recipes.plugin_files import copy_of, is_edited
from recipes.schema.recipe import Recipe
from resnet.rundir.find import new_run_dir
from resnet.rundir.lease import holder_elsewhere
from resnet.rundir.status import read_status
from slurm.profile import Profile


def check_one_place(profile: Profile) -> None:
    """Raise ValueError where a job would wait in several QOS, of which Slurm takes one."""
    if len(profile.each_qos) > 1:
        raise ValueError(
            f"slurm.qos={profile.qos}: only `launch submit` waits in several QOS: give one here, as "
            f"slurm.qos={profile.each_qos[0]}"
        )


def check_array(profile: Profile) -> None:
    """Raise ValueError for what a trial of a sweep, a job of an array, cannot have."""
    check_one_place(profile)
    if profile.is_range:
        raise ValueError(
            f"slurm.nodes={profile.nodes}: trials are jobs of one array, and the batches of some may divide over other "
            f"numbers of nodes than those of others: give one number, as slurm.nodes={profile.least_nodes}"
        )
    if profile.spare_nodes:
        raise ValueError(
            f"slurm.spare_nodes={profile.spare_nodes}: trials are jobs of an array, which Slurm does not let give a "
            "failed node back, so that a spare one is of no use: slurm.spare_nodes=0"
        )


def check_paths(recipe: Recipe, scratch: str | None) -> None:
    """Raise ValueError, naming them, where files that the recipe reads are not there, or its plugins are wrong.

    scratch: a folder on the nodes' own disks, below which nothing is looked for.
    """
    check_plugin_code(recipe)
    data = recipe.data
    named = {f"data.{key}": path for key, path in data.paths().items()}
    weights = recipe.weights_read()
    named |= {key: source for key, source in weights.items() if not _is_run(source, recipe.run.root)}
    if recipe.resume not in ("auto", "never"):
        named["resume"] = recipe.resume
    missing = [
        f"  {key}={value}"
        for key, value in named.items()
        if value
        and not (scratch and _expanded(value).is_relative_to(_expanded(scratch)))
        and not _expanded(value).exists()
    ]
    if missing:
        raise ValueError(
            "\n".join(["not there:", *missing, "(paths on the nodes' own disks belong under slurm.scratch)"])
        )


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser()


def _is_run(text: str, root: str) -> bool:
    """Whether a text means a run below the root, as RUN or RUN@best."""
    names = {Path(name).expanduser() for name in (text, text.rpartition("@")[0] or text)}
    folders = (Path(root).expanduser(), Path())
    return any((folder / name / "recipe.yaml").is_file() for name in names for folder in folders)


def check_existing(run_dir: Path, recipe: Recipe) -> None:
    """Raise ValueError where a run of that name is there and cannot go on as asked."""
    if not (run_dir / "recipe.yaml").is_file():
        raise ValueError(f"{run_dir} is there and is no run: choose another run.name")
    if recipe.resume == "never":
        raise ValueError(f"{run_dir} exists and resume=never: choose another run.name")
    refuse_active(run_dir)
    before = load_file(run_dir / "recipe.yaml").recipe
    changed = differences(before, going_on(recipe, before))
    if any((run_dir / "checkpoints").glob("step-*[0-9]")):
        refuse_fixed(changed, run_dir)
        # Before its copy, the only good one where this file was edited, is overwritten.
        if (network := recipe.model.plugin) and is_edited(network, run_dir):
            raise ValueError(
                f"{run_dir} is a run, and its network cannot change while it goes on: model.plugin ({network.file} was "
                f"edited)\nput the file back, as in {copy_of(network, run_dir)}, or choose another run.name"
            )
    status = read_status(run_dir)
    if status.get("state") == "finished" and not changed:
        raise ValueError(f"{run_dir} is finished: raise epochs= to continue it, or choose another run.name")


def place(loaded: Loaded, profile: Profile) -> Path:
    """Where the run lives, as an absolute path."""
    recipe = loaded.recipe
    root = profile.run_root if profile.run_root and "run.root" not in loaded.origins else recipe.run.root
    root = Path(root).expanduser().absolute()
    name = recipe.run.name
    run_dir = root / name if name else new_run_dir(root, recipe.name)
    check_name(run_dir)
    return run_dir


def check_name(run_dir: Path) -> None:
    """Raise ValueError for a place of a run that Slurm, or a command line, would take for something else."""
    if run_dir.name.startswith((".", "-")):
        raise ValueError(f"run.name={run_dir.name}: a run's name does not start with . or -")
    if "%" in str(run_dir):
        raise ValueError(f"{run_dir}: Slurm reads % in paths as a pattern, choose another run.name or run.root")


def refuse_active(run_dir: Path) -> None:
    """Raise ValueError where a run is in the queue, or is trained by somebody."""
    if active := active_job(run_dir):
        raise ValueError(f"{run_dir} is in the queue already: job {active[0]} ({active[1].lower()})")
    if holder := holder_elsewhere(run_dir):
        raise ValueError(f"{holder}: stop that one first (launch cancel), or choose another run.name")
