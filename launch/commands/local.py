"""`launch local`: train here: on this machine, or, in an allocation of Slurm's, on all of its nodes."""

from __future__ import annotations

import argparse

from launch.arguments import split_words
from launch.derived import follows
from launch.runs.attend import train_here
from launch.runs.go_in import train_held
from launch.runs.held import Holding, held_here
from launch.runs.here import ranks_here, visible_gpus
from recipes.load import load
from recipes.plugin_check import check_plugin_code
from recipes.schema.recipe import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "launch local recipe=NAME [KEY=VALUE ...] [--gpus N | --cpu-ranks N] [--here] [--debug]"
    parser.add_argument(
        "words",
        nargs="*",
        metavar="KEY=VALUE",
        help="recipe=NAME, recipe=FILE.yaml or recipe=RUN_DIR; changes to it; in an allocation of Slurm's also "
        "cluster=NAME and slurm.KEY=VALUE",
    )
    devices = parser.add_mutually_exclusive_group()
    devices.add_argument(
        "--gpus", type=int, metavar="N", help="GPUs to train on (all there are, or else the CPU); of each node"
    )
    devices.add_argument("--cpu-ranks", type=int, metavar="N", help="processes to train with on the CPU; of each node")
    parser.add_argument(
        "--here", action="store_true", help="in an allocation of Slurm's: on this machine alone, without srun"
    )


def run(arguments: argparse.Namespace) -> int:
    """Train; returns the run's exit code. Raises ValueError for mistakes that show before anything is started."""
    words = split_words(arguments.words, needs_cluster=False)
    loaded, on_cpu = load(words.recipe), ["device=cpu"] if arguments.cpu_ranks else []
    _check_counts(arguments, loaded.recipe)
    if not arguments.here and (job_id := held_here()):
        cpu_ranks = arguments.cpu_ranks or (1 if loaded.recipe.device == "cpu" else None)
        holding = Holding.of(job_id, words.cluster, words.slurm, True, arguments.gpus, cpu_ranks)
        holding.debug = arguments.debug
        return train_held(load([*words.recipe, *on_cpu]), holding)
    if words.cluster or words.slurm:
        word = f"cluster={words.cluster}" if words.cluster else words.slurm[0]
        raise ValueError(f"{word} is for training in an allocation of Slurm's (salloc), and this is none: leave it out")
    ranks = _count_ranks(arguments, loaded.recipe)
    follows(loaded, ranks)
    check_plugin_code(loaded.recipe)
    return train_here([*words.recipe, *on_cpu, *(["--debug"] if arguments.debug else [])], ranks)


def _check_counts(arguments: argparse.Namespace, recipe: Recipe) -> None:
    for option, count in (("--gpus", arguments.gpus), ("--cpu-ranks", arguments.cpu_ranks)):
        if count is not None and count < 1:
            raise ValueError(f"{option} {count}: give 1 or more")
    if arguments.cpu_ranks and recipe.device == "cuda":
        raise ValueError("device=cuda asks for a GPU, and --cpu-ranks for none: leave one of them out")
    if recipe.device == "cpu" and arguments.gpus:
        raise ValueError("device=cpu trains without GPUs: leave out --gpus, or take --cpu-ranks")


def _count_ranks(arguments: argparse.Namespace, recipe: Recipe) -> int:
    if arguments.cpu_ranks:
        return arguments.cpu_ranks
    if arguments.gpus and arguments.gpus > (found := visible_gpus()):
        raise ValueError(f"--gpus {arguments.gpus}, but {found} can be seen here (CUDA_VISIBLE_DEVICES, nvidia-smi -L)")
    return arguments.gpus or ranks_here(recipe.device)
