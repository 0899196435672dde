"""`launch local`: train here, on the GPUs of this machine or on its CPU."""

from __future__ import annotations

import argparse

from launch.derived import follows
from launch.runs.attend import train_here
from launch.runs.here import ranks_here, visible_gpus
from recipes.load import load
from recipes.plugin_check import check_plugin_code
from recipes.schema.recipe import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "launch local recipe=NAME [KEY=VALUE ...] [--gpus N | --cpu-ranks N] [--debug]"
    parser.add_argument(
        "words",
        nargs="*",
        metavar="KEY=VALUE",
        help="recipe=NAME, recipe=FILE.yaml or recipe=RUN_DIR; changes to it",
    )
    devices = parser.add_mutually_exclusive_group()
    devices.add_argument("--gpus", type=int, metavar="N", help="GPUs to train on (all visible ones, or else the CPU)")
    devices.add_argument("--cpu-ranks", type=int, metavar="N", help="processes to train with on the CPU")


def run(arguments: argparse.Namespace) -> int:
    """Train; returns the run's exit code. Raises ValueError for mistakes that show before anything is started."""
    loaded = load(arguments.words)
    ranks = _count_ranks(arguments, loaded.recipe)
    follows(loaded, ranks)
    check_plugin_code(loaded.recipe)
    words = [*arguments.words, *(["device=cpu"] if arguments.cpu_ranks else [])]
    return train_here([*words, *(["--debug"] if arguments.debug else [])], ranks)


def _count_ranks(arguments: argparse.Namespace, recipe: Recipe) -> int:
    for option, count in (("--gpus", arguments.gpus), ("--cpu-ranks", arguments.cpu_ranks)):
        if count is not None and count < 1:
            raise ValueError(f"{option} {count}: give 1 or more")
    if arguments.cpu_ranks:
        if recipe.device == "cuda":
            raise ValueError("device=cuda asks for a GPU, and --cpu-ranks for none: leave one of them out")
        return arguments.cpu_ranks
    if recipe.device == "cpu" and arguments.gpus:
        raise ValueError("device=cpu trains without GPUs: leave out --gpus, or take --cpu-ranks")
    if arguments.gpus and arguments.gpus > (found := visible_gpus()):
        raise ValueError(f"--gpus {arguments.gpus}, but {found} can be seen here (CUDA_VISIBLE_DEVICES, nvidia-smi -L)")
    return arguments.gpus or ranks_here(recipe.device)
