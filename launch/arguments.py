"""The words of a command line, sorted: what to train, where, and how the cluster's profile is changed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from resnet.process.exit_codes import FINISHED, MISTAKE
from resnet.rundir.find import ROOT, places

GROW_MINUTES = 30
"""Of --grow without a number."""
WORDS_USAGE = "[KEY=VALUE ...] [slurm.KEY=VALUE ...]"


class Words(NamedTuple):
    recipe: list[str]
    """For `recipes.load`."""
    cluster: str | None
    slurm: list[str]
    """Changes to the profile, for `slurm.profile.load_profile`."""


def split_words(words: Iterable[str], needs_cluster: bool = True) -> Words:
    """Sort words by what they are of. Raises ValueError where two clusters are given, or slurm keys without one.

    needs_cluster: without it they may change an allocation that is there already.
    """
    recipe, clusters, slurm = [], [], []
    for word in words:
        key, _, value = word.partition("=")
        if key == "cluster":
            clusters.append(value)
        elif key.startswith("slurm."):
            slurm.append(word)
        else:
            recipe.append(word)
    if len(clusters) > 1:
        raise ValueError(f"give one cluster=NAME, not {' and '.join(clusters)}")
    if slurm and not clusters and needs_cluster:
        raise ValueError(f"{slurm[0]} changes a cluster's profile: give cluster=NAME too")
    return Words(recipe, clusters[0] if clusters else None, slurm)


def split_changes(words: Sequence[str], root: str) -> tuple[list[str], list[str]]:
    """Names of runs and sweeps, and KEY=VALUE, which a path or a name of a folder below the root is not."""
    changes = [word for word in words if _is_change(word, root)]
    return [word for word in words if word not in changes], changes


def _is_change(word: str, root: str) -> bool:
    key, equals, _ = word.partition("=")
    is_ours = key == "cluster" or key.startswith("slurm.")
    return bool(equals) and (is_ours or not any(path.is_dir() for path in places(word, root)))


def add_root(parser: argparse.ArgumentParser) -> None:
    """The option that names the folder of the runs."""
    where = f"folder of the runs (default: {ROOT}, and the folders that runs were sent to from this machine)"
    parser.add_argument("--root", default=ROOT, help=where)


def add_grow(parser: argparse.ArgumentParser) -> None:
    """The option by which a run on few nodes of a range looks for more."""
    what = f"with slurm.nodes=MIN-MAX: look each so many minutes ({GROW_MINUTES}) for more nodes, and take them where "
    what += "the run then ends sooner (slurm.grow)"
    parser.add_argument("--grow", nargs="?", const=GROW_MINUTES, type=_minutes, metavar="MINUTES", help=what)


def growing(arguments: argparse.Namespace) -> list[str]:
    """What --grow changes in the profile."""
    return [] if arguments.grow is None else [f"slurm.grow={arguments.grow:g}"]


def _minutes(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no number of minutes: write --grow=30, or --grow last") from None


def for_each(names: Sequence[str], command: str, task: Callable[[str], int]) -> int:
    """Do a task for each name; returns the worst exit code.

    Where there are several, a mistake about one is told and does not keep the others from their turn.
    """
    if len(names) == 1:
        return task(names[0])
    code = FINISHED
    for name in names:
        try:
            code = max(code, task(name))
        except ValueError as error:
            print(f"{command}: {error}", file=sys.stderr)
            code = max(code, MISTAKE)
    return code
