"""`launch sweep`: try many settings, in an array of Slurm jobs or here, and complete what an earlier command began."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch.arguments import Words, split_words
from launch.runs.checks import check_array, check_paths
from launch.runs.here import visible_gpus
from launch.runs.send import shown
from launch.runs.sizes import find_sizes
from launch.sweep.directory import AUTO, Place, SweepDir, comparable
from launch.sweep.dry_run import dry_run
from launch.sweep.points import grid, sample
from launch.sweep.study import crowding
from launch.sweep.sweep_json import sweep_json
from launch.sweep.sweep_types import Sweep, Values
from launch.sweep.trials import Trial, trials
from launch.sweep.words import from_words
from recipes.library import own
from recipes.plan import make_plan, samples_known
from recipes.schema.recipe import Recipe
from recipes.schema.training import Wandb
from slurm.profile import Profile, load_profile
from slurm.sbatch import batch_python_is_plain, check_slurm

NICE = 100
"""As Slurm's own, where sbatch --nice has no number."""
MOST_UNASKED = 50
"""Trials that are sent without a question."""
PROBES = 8
"""Points of a bayes search that are validated before it begins: which it will try is not known yet."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "launch sweep recipe=A[,B] KEY=V1,V2 ... [cluster=NAME] [slurm.KEY=VALUE ...] [options]\n"
        "       launch sweep FILE.yaml [KEY=VALUE ...] [cluster=NAME] [options]"
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="KEY=VALUES",
        help="keys of the recipe; several values by commas, range(a,b,step), log(a,b,n), linspace(a,b,n); or a sweep "
        "file in W&B's format. cluster=local (the default) trains here",
    )
    parser.add_argument("--name", help="the sweep's name (made of the recipe and what is swept)")
    parser.add_argument("--count", type=int, metavar="N", help="trials of a random or bayes search (run_cap in a file)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of a random or bayes search (0)")
    parser.add_argument(
        *("--parallel", "--max-parallel"),
        type=_parallel,
        metavar="N",
        help="trials that run at once (here: 1; on a cluster: as many as it runs); auto: on a cluster, as many as fit "
        "on what is idle, and fewer while other jobs wait",
    )
    parser.add_argument("--jobs", dest="parallel", type=_parallel, help=argparse.SUPPRESS)
    parser.add_argument(
        "--nice",
        nargs="?",
        const=NICE,
        type=_nice,
        metavar="N",
        help=f"on a cluster, behind jobs of others that are about as urgent: a priority less by N ({NICE})",
    )
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="database of a bayes search, as in mysql://me:$SECRET@host/db, where $SECRET is of the environment",
    )
    parser.add_argument("--wandb-sweep", action="store_true", help="show the trials on the page of a W&B sweep, too")
    parser.add_argument("--dry-run", action="store_true", help="show the trials and what they would take")
    parser.add_argument("--yes", action="store_true", help=f"do not ask before more than {MOST_UNASKED} trials")


def run(arguments: argparse.Namespace) -> int:
    files = [word for word in arguments.words if "=" not in word and word.endswith((".yaml", ".yml"))]
    words = split_words([word for word in arguments.words if word not in files])
    _check_options(arguments)
    sweep = _with_absolute_recipes(_read(files, words.recipe, arguments))
    profile = _profile(words, arguments)
    _check_python(sweep, profile)
    listed, notes = _trials(sweep, arguments.seed)
    _check(listed, sweep, profile)
    recipe = listed[0].recipe
    if sweep.metric is None:
        sweep = replace(sweep, metric=recipe.eval.metric)
    sweep_dir = _place(sweep, recipe, profile, arguments)
    place = Place(words.cluster or "local", profile, Path.cwd(), arguments.parallel)
    count = sweep.run_cap if sweep.method == "bayes" else None
    crowded = crowding(count, _most_at_once(arguments.parallel, count if profile else 1)) if count else None
    for note in filter(None, (*sweep.notes, *notes, crowded)):
        print(f"note: {note}", file=sys.stderr)
    if arguments.dry_run:
        print("\n".join(dry_run(sweep, listed, count, sweep_dir, place)))
        return 0
    if profile is not None:
        check_slurm()
    _ask(count or len(listed), arguments)
    with SweepDir(sweep_dir) as directory:
        content = sweep_json(sweep) | _circumstances(place, arguments) | {"name": sweep_dir.name}
        if arguments.wandb_sweep:
            settings = [trial.recipe.wandb for trial in listed]
            content["wandb_sweep"] = _wandb_sweep(directory, replace(sweep, name=sweep_dir.name), settings)
        recipes = [trial.recipe for trial in listed]
        directory.refuse_edited(recipes)
        directory.update(content, None if count else listed, count)
        directory.keep_plugins(recipes)
        return _train_here(directory, place) if profile is None else _send(directory, place)


def _parallel(text: str) -> int | str:
    if text != AUTO and not text.lstrip("-").isdigit():
        raise argparse.ArgumentTypeError(f"must be a number or {AUTO}, not {text}")
    return text if text == AUTO else int(text)


def _nice(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}: write it last, or as --nice={NICE}")
    return int(text)


def _most_at_once(parallel: int | str | None, most: int) -> int:
    """By which to judge a search: of what is idle later on nothing is known."""
    return parallel if isinstance(parallel, int) else most


def _check_python(sweep: Sweep, profile: Profile | None) -> None:
    """Raise ValueError where trials' batch scripts would need our packages, and have the host's Python alone."""
    if profile and batch_python_is_plain(profile) and (sweep.method == "bayes" or sweep.early_stop):
        key = "container" if profile.container else "stage_environment"
        raise ValueError(
            f"slurm.{key}={getattr(profile, key)}: bayes and early stopping need our packages in the batch script, "
            "before that is on a node: leave it out, or give slurm.stage_environment a folder"
        )


def _profile(words: Words, arguments: argparse.Namespace) -> Profile | None:
    """Of the cluster that the trials are sent to; None: they are trained here."""
    if words.cluster in (None, "local"):
        if words.slurm:
            raise ValueError(f"{words.slurm[0]}: cluster=local takes no slurm keys")
        if arguments.nice is not None or arguments.parallel == AUTO:
            option = "--nice" if arguments.nice is not None else f"--parallel {AUTO}"
            raise ValueError(f"{option} is for trials that are sent to a cluster: give cluster=NAME, or leave it out")
        return None
    nice = [] if arguments.nice is None else [f"slurm.sbatch.nice={arguments.nice}"]
    profile = load_profile(words.cluster, [*words.slurm, *nice])
    check_array(profile)
    return profile


def _circumstances(place: Place, arguments: argparse.Namespace) -> dict[str, Any]:
    """What sweep.json says beside the sweep: where and how its trials run, by the newest command."""
    profile = place.profile
    return {
        "seed": arguments.seed,
        "storage": arguments.storage,
        "cluster": place.cluster,
        "folder": str(place.cwd),
        "parallel": place.parallel,
        "ranks": profile.ranks if profile else 1,
        "gpus_per_trial": profile.most_nodes * profile.gpus_per_node if profile else min(1, visible_gpus()),
        "command": shlex.join(["launch", *sys.argv[1:]]),
    }


def _wandb_sweep(directory: SweepDir, sweep: Sweep, settings: Sequence[Wandb]) -> dict[str, str | None]:
    """Id and address of the sweep at W&B, which the first command made or this one makes; settings: of its trials."""
    if known := directory.content.get("wandb_sweep"):
        return known
    if directory.content:
        raise ValueError(f"--wandb-sweep: {directory.path} was begun without it; choose another --name")
    if len({(one.project, one.entity) for one in settings}) > 1:
        raise ValueError("--wandb-sweep: a W&B sweep belongs to one project; give all trials the same wandb.project")
    from launch.sweep.wandb_register import register

    made = register(sweep, settings[0])
    print(f"W&B: {made['url'] or made['id']}")
    return made


def _train_here(directory: SweepDir, place: Place) -> int:
    from launch.sweep.here import await_orphans, train_here
    from launch.sweep.show import look

    await_orphans(directory)
    code = train_here(directory, _missing(directory), place)
    lines, _, _ = look(directory.path, None)
    print("\n".join(["", *lines]))
    return code


def _send(directory: SweepDir, place: Place) -> int:
    from launch.sweep.on_slurm import send_trials

    send_trials(directory, _missing(directory), place)
    name = shown(directory.path)
    print(f"  follow   launch status {name}\n  again    the same command completes it; launch retry {name} what failed")
    return 0


def _read(files: list[str], words: list[str], arguments: argparse.Namespace) -> Sweep:
    if len(files) > 1:
        raise ValueError(f"give one sweep file, not {' and '.join(files)}")
    if files:
        from launch.sweep.wandb_read import from_file

        sweep = from_file(Path(files[0]), words)
    else:
        sweep = from_words(words)
    if arguments.count is not None:
        sweep = replace(sweep, run_cap=arguments.count)
    if sweep.method != "grid" and sweep.run_cap is None:
        raise ValueError(f"method: {sweep.method} never ends by itself: give --count N, or run_cap in the file")
    return sweep


def _trials(sweep: Sweep, seed: int) -> tuple[list[Trial], list[str]]:
    """All trials; of a bayes search, some that it might try, so that its keys and values are known to be right."""
    if sweep.method == "grid":
        return trials(sweep, grid(sweep))
    assert sweep.run_cap is not None
    number = sweep.run_cap if sweep.method == "random" else min(PROBES, sweep.run_cap)
    return trials(sweep, (sample(sweep, seed, index) for index in range(number)))


def _check_options(arguments: argparse.Namespace) -> None:
    for option in ("count", "parallel"):
        value = getattr(arguments, option)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"--{option} must be at least 1")


def _with_absolute_recipes(sweep: Sweep) -> Sweep:
    """Recipes that are the user's files by their whole paths: trials may be made of them from another folder."""

    def absolute(text: str) -> str:
        found = own().get(text, text if "/" in text or text.endswith((".yaml", ".yml")) else None)
        return str(Path(found).expanduser().absolute()) if found else text

    if "recipe" in sweep.fixed:
        return replace(sweep, fixed={**sweep.fixed, "recipe": absolute(sweep.fixed["recipe"])})
    values = sweep.parameters["recipe"]
    assert isinstance(values, Values)
    whole = replace(values, texts=tuple(absolute(text) for text in values.texts))
    return replace(sweep, parameters={**sweep.parameters, "recipe": whole})


def _check(listed: Sequence[Trial], sweep: Sweep, profile: Profile | None) -> None:
    for trial in listed:
        try:
            _check_recipe(trial.recipe, profile, _root(sweep, trial.recipe, profile))
        except ValueError as error:
            raise ValueError(f"{error}\n(in trial {trial.name})") from error


def _check_recipe(recipe: Recipe, profile: Profile | None, root: str) -> None:
    if profile is None:
        make_plan(recipe, samples_known(recipe.data) or recipe.batch_size, 1)
    else:
        find_sizes(recipe, profile)
    placed = recipe.model_copy(update={"run": recipe.run.model_copy(update={"root": root})})
    check_paths(placed, profile.scratch if profile else None)
    if recipe.run.name is not None:
        raise ValueError(f"run.name={recipe.run.name}: trials are named after what is swept; --name names the sweep")


def _place(sweep: Sweep, recipe: Recipe, profile: Profile | None, arguments: argparse.Namespace) -> Path:
    """The sweep's directory: the same for the same command, which is how it is found again."""
    name = arguments.name or sweep.name
    if name is None:
        told = {**sweep_json(sweep), "seed": arguments.seed}
        content = json.dumps(comparable(told) | {"parameters": told["parameters"]}, sort_keys=True)
        name = f"sweep-{recipe.name}-{hashlib.sha256(content.encode()).hexdigest()[:6]}"
    if not name or name.startswith((".", "-")) or set(name) & set("/\\%") or not name.isprintable():
        raise ValueError(f"--name {name}: a name cannot contain / or %, or start with . or -")
    return Path(_root(sweep, recipe, profile)).expanduser().absolute() / name


def _root(sweep: Sweep, recipe: Recipe, profile: Profile | None) -> str:
    """The folder that the sweep's own is in, and other runs that its trials name."""
    given = "run.root" in sweep.fixed
    return profile.run_root if profile and profile.run_root and not given else recipe.run.root


def _ask(number: int, arguments: argparse.Namespace) -> None:
    if number <= MOST_UNASKED or arguments.yes:
        return
    if not sys.stdin.isatty():
        raise ValueError(f"{number} trials: --dry-run shows them, --yes sends them")
    if input(f"{number} trials. Continue? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ValueError("nothing was sent")


def _missing(directory: SweepDir) -> list[dict[str, Any]]:
    """The trials to run; says how many they are, and what of the others."""
    todo, there = directory.missing()
    counted = ", ".join(f"{number} {state}" for state, number in sorted(there.items()))
    others = f" ({counted})" if there else ""
    print(f"{directory.path.name}: {len(todo)} of {len(directory.trials)} trials to run{others}")
    return todo
