"""`launch submit`: send a run to Slurm."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from launch.arguments import WORDS_USAGE, split_words
from launch.runs.checks import check_batch, check_existing, check_paths
from launch.runs.send import SNAPSHOTS, send, shown
from recipes.load import Loaded, load, run_recipe_text
from recipes.plan import Plan, samples_known
from recipes.schema.recipe import Recipe
from resnet.rundir.attempts import read_attempts
from resnet.rundir.files import write_atomic
from resnet.rundir.find import new_run_dir
from slurm.code_copy import snapshot_path, take_snapshot
from slurm.profile import Profile, load_profile
from slurm.sbatch import Submission, check_slurm, expected_start, script


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"launch submit recipe=NAME cluster=NAME {WORDS_USAGE} [--dry-run] [--debug]"
    parser.add_argument(
        "words",
        nargs="*",
        metavar="KEY=VALUE",
        help="recipe=NAME and changes to it; cluster=NAME or FILE.yaml and changes to it, as in slurm.nodes=4",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be sent, and when it would start")


def run(arguments: argparse.Namespace) -> None:
    words = split_words(arguments.words)
    if words.cluster is None:
        raise ValueError("give cluster=NAME: a profile of the cluster (`launch doctor` lists and checks them)")
    profile = load_profile(words.cluster, words.slurm)
    loaded = load(words.recipe)
    recipe = loaded.recipe
    plan = check_batch(recipe, profile)
    check_paths(recipe, profile.scratch)
    run_dir = place(loaded, profile)
    fresh = not run_dir.exists()
    if not fresh:
        check_existing(run_dir, recipe)
    check_slurm()
    recipe = recipe.model_copy(
        update={
            "run": recipe.run.model_copy(update={"name": run_dir.name, "root": str(run_dir.parent)}),
            # That the run is new has been seen here; in the job its directory is there.
            "resume": "auto" if recipe.resume == "never" else recipe.resume,
        }
    )
    if arguments.dry_run:
        print(_dry_run(run_dir, profile, plan, recipe))
        return
    snapshot = take_snapshot(run_dir.parent / SNAPSHOTS)
    run_dir.mkdir(parents=True, exist_ok=not fresh)
    try:
        if fresh:
            write_atomic(run_dir / "recipe.yaml", run_recipe_text(recipe, run_dir / "recipe.yaml"))
        job_id = send(run_dir, recipe, words.cluster, profile, snapshot, Path.cwd())
    except BaseException:
        if fresh:
            shutil.rmtree(run_dir, ignore_errors=True)
        raise
    name = shown(run_dir)
    print(
        f"{run_dir.name} is job {job_id} on {words.cluster}: {_size(profile)}; {_batch(plan, recipe)}\n"
        f"  follow   launch status {name}     launch logs {name} -f\n"
        f"  end      launch cancel {name}     (saves a checkpoint first; launch retry {name} goes on)\n"
        f"  logs     {run_dir / 'logs' / f'attempt-{len(read_attempts(run_dir)) + 1}'}"
    )


def place(loaded: Loaded, profile: Profile) -> Path:
    """Where the run lives, as an absolute path."""
    recipe = loaded.recipe
    root = profile.run_root if profile.run_root and "run.root" not in loaded.origins else recipe.run.root
    root = Path(root).expanduser().absolute()
    name = recipe.run.name
    if name is not None and name.startswith((".", "-")):
        raise ValueError(f"run.name={name}: a run's name does not start with . or -")
    run_dir = root / name if name else new_run_dir(root, recipe.name)
    if "%" in str(run_dir):
        raise ValueError(f"{run_dir}: Slurm reads % in paths as a pattern, choose another run.name or run.root")
    return run_dir


def _size(profile: Profile) -> str:
    each = f"{profile.gpus_per_node} GPUs" if profile.gpus_per_node else f"{profile.local_ranks} CPU ranks"
    return f"{profile.nodes} nodes x {each}" if profile.nodes > 1 else f"1 node, {each}"


def _batch(plan: Plan, recipe: Recipe) -> str:
    accumulated = f" in {plan.accumulation} micro-batches" if plan.accumulation > 1 else ""
    steps = f", {plan.end_step} steps" if samples_known(recipe.data) else ""
    return (
        f"batch {plan.batch_size}, {plan.batch_size // plan.world_size} per rank{accumulated}; lr {plan.lr:g}; "
        f"{recipe.epochs:g} epochs{steps}"
    )


def _dry_run(run_dir: Path, profile: Profile, plan: Plan, recipe: Recipe) -> str:
    files = run_dir / "slurm"
    snapshot = snapshot_path(run_dir.parent / SNAPSHOTS)
    submission = Submission(profile, run_dir.name, files, snapshot, Path.cwd(), [run_dir], [files / "recipe.yaml"])
    start = expected_start(submission)
    facts = [f"run directory   {run_dir}", f"ranks           {plan.world_size}: {_size(profile)}"]
    facts += [f"training        {_batch(plan, recipe)}", f"expected start  {start}", "nothing was sent"]
    return "\n".join([script(submission), "", *(f"# {fact}" for fact in facts)])
