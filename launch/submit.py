"""`launch submit`: send a run to Slurm."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from launch.jobs import SNAPSHOTS, refuse_active, send, shown
from launch.words import WORDS_USAGE, split_words
from recipes.changes import differences, refuse_fixed
from recipes.load import Loaded, dump, load, load_file
from recipes.plan import Plan, make_plan, samples_known
from recipes.rundir import new_run_dir, read_status, write_atomic
from recipes.schema import Recipe
from slurm.attempts import read_attempts
from slurm.profile import Profile, load_profile
from slurm.sbatch import Submission, check_slurm, expected_start, script
from slurm.snapshot import snapshot_path, take_snapshot


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
            write_atomic(run_dir / "recipe.yaml", dump(recipe))
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


def check_batch(recipe: Recipe, profile: Profile) -> Plan:
    """What follows from the recipe on so many ranks. Raises ValueError where the batch does not divide."""
    if recipe.device == "cuda" and not profile.gpus_per_node:
        raise ValueError("device=cuda, but slurm.gpus_per_node=0")
    # Without the number of samples: one step an epoch, enough for all but the number of steps.
    return make_plan(recipe, samples_known(recipe.data) or recipe.batch_size, profile.ranks)


def check_paths(recipe: Recipe, scratch: str | None) -> None:
    """Raise ValueError, naming them, where files that the recipe reads are not there.

    scratch: a folder on the nodes' own disks, below which nothing is looked for.
    """
    data = recipe.data
    named: dict[str, str | None] = {}
    if data.source in ("image_folder", "csv"):
        named = {"data.train": data.train, "data.val": data.val}
    if data.source == "huggingface" and data.train.startswith(("/", ".", "~")):
        named = {"data.train": data.train}
    for key in ("val_labels", "images"):
        named[f"data.{key}"] = getattr(data, key, None)
    weights = recipe.model.pretrained
    if weights and ("/" in weights or weights.endswith((".safetensors", ".pth"))):
        named["model.pretrained"] = weights
    if recipe.resume not in ("auto", "never"):
        named["resume"] = recipe.resume
    missing = [
        f"  {key}={value}"
        for key, value in named.items()
        if value and not (scratch and Path(value).is_relative_to(scratch)) and not Path(value).expanduser().exists()
    ]
    if missing:
        raise ValueError(
            "\n".join(["not there:", *missing, "(paths on the nodes' own disks belong under slurm.scratch)"])
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


def check_existing(run_dir: Path, recipe: Recipe) -> None:
    """Raise ValueError where a run of that name is there and cannot go on as asked."""
    if not (run_dir / "recipe.yaml").is_file():
        raise ValueError(f"{run_dir} is there and is no run: choose another run.name")
    if recipe.resume == "never":
        raise ValueError(f"{run_dir} exists and resume=never: choose another run.name")
    refuse_active(run_dir)
    changed = differences(load_file(run_dir / "recipe.yaml").recipe, recipe)
    if any((run_dir / "checkpoints").glob("step-*[0-9]")):
        refuse_fixed(changed, run_dir)
    status = read_status(run_dir)
    if status.get("state") == "finished" and not changed:
        raise ValueError(f"{run_dir} is finished: more epochs= would continue it, another run.name starts anew")


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
