"""The command `launch`: each subcommand is a module of its own, imported when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from resnet.process.commands import Command, Completer, run_program

COMMANDS = {
    name: Command(what, partial(importlib.import_module, f"launch.commands.{name}"))
    for name, what in {
        "recipes": "list the recipes that come with the program",
        "show": "show a recipe with all its values, and what follows from them",
        "keys": "explain the keys of recipes and of clusters",
        "local": "train here, on the GPUs of this machine or on its CPU",
        "submit": "send a run to Slurm",
        "chain": "do what follows a run or a sweep's winner: evaluate, prune, train on, quantize, export",
        "sweep": "try many settings, on Slurm or here",
        "status": "show how runs are doing, here and under Slurm",
        "why": "say what a run waits for, or why it failed, is slow, had a spike or went wrong; and what mends it",
        "logs": "show what the ranks of a run printed",
        "cancel": "let a run save a checkpoint and stop",
        "retry": "continue runs, or the failed trials of a sweep, from their newest checkpoints",
        "clean": "remove what runs leave and nobody needs any more",
        "doctor": "check whether this machine can send runs to a cluster",
        "completion": "say how a shell completes commands, keys and names",
    }.items()
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a subcommand and leave with its exit code."""
    sys.exit(run_program("launch", COMMANDS, list(sys.argv[1:] if argv is None else argv), _completers))


def _completers() -> Mapping[str, Completer]:
    from recipes.completion import complete_word
    from resnet.rundir.find import run_names
    from slurm.profile import Profile, profile_names

    def words(prefix: str) -> Iterator[str]:
        yield from complete_word(prefix)
        if prefix.startswith("cluster="):
            yield from (f"cluster={name}" for name in ["local", *profile_names()])
        yield from ("cluster=", *(f"slurm.{name}=" for name in Profile.model_fields))

    of_words = dict.fromkeys(("KEY=VALUE", "KEY=VALUES", "cluster=NAME", "KEY"), words)
    return {**of_words, "RUN": lambda _: run_names()}
