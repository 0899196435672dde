"""The command `launch`: each subcommand is a module of its own, imported when it is called."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence

from recipes.text import suggestion, unknown_words
from resnet.process.exit_codes import BROKEN_PIPE, FAILED, FINISHED, INTERRUPTED, MISTAKE

COMMANDS = {
    "recipes": ("launch.commands.recipes", "list the recipes that come with the program"),
    "show": ("launch.commands.show", "show a recipe with all its values, and what follows from them"),
    "local": ("launch.commands.local", "train here, on the GPUs of this machine or on its CPU"),
    "submit": ("launch.commands.submit", "send a run to Slurm"),
    "sweep": ("launch.commands.sweep", "try many settings, on Slurm or here"),
    "status": ("launch.commands.status", "how runs go, here and under Slurm"),
    "logs": ("launch.commands.logs", "what the ranks of a run printed"),
    "cancel": ("launch.commands.cancel", "let a run save a checkpoint and stop"),
    "retry": (
        "launch.commands.retry",
        "send a run, or a sweep's failed trials, again: each continues from its newest checkpoint",
    ),
    "doctor": ("launch.commands.doctor", "look at whether this machine can send runs to a cluster"),
}
"""By name: the module, and what the subcommand does. A module has two functions: `add_arguments(parser)`, and
`run(arguments)`, which returns its exit code (None: 0) and raises ValueError for what the user got wrong and OSError
for what the system refused."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a subcommand and leave with its exit code: a mistake ends in one message, and a traceback with --debug."""
    sys.exit(_main(list(sys.argv[1:] if argv is None else argv)))


def _main(argv: list[str]) -> int:
    command, code = argv[0] if argv else "", FINISHED
    try:
        if command in COMMANDS:
            module, arguments = _parse(command, argv[1:])
            code = module.run(arguments) or FINISHED
        elif command in ("-h", "--help"):
            print(_help())
        elif not command:
            print(_help(), file=sys.stderr)
            return MISTAKE
        else:
            hint = suggestion(command, COMMANDS, count=1).replace("mean ", "mean launch ")
            print(f"launch: no command {command!r}: {hint}", file=sys.stderr)
            return MISTAKE
        print(end="", flush=True)
    except BrokenPipeError:
        # Python would complain when it flushes what is left at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (ValueError, OSError, subprocess.SubprocessError) as error:
        if "--debug" in argv:
            traceback.print_exc()
        print(f"launch {command}: {error}", file=sys.stderr)
        return MISTAKE if isinstance(error, ValueError) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _help() -> str:
    commands = [f"  {name:10} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: launch COMMAND ...", "", *commands, "", "launch COMMAND --help says more."])


def _parse(command: str, argv: list[str]):
    """The module of a subcommand, and its arguments. Raises ValueError for options that it does not have."""
    name, what = COMMANDS[command]
    module = importlib.import_module(name)
    parser = argparse.ArgumentParser(
        prog=f"launch {command}", description=f"{what[0].upper()}{what[1:]}.", allow_abbrev=False
    )
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of a mistake")
    arguments, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        raise ValueError(unknown_words(unknown, parser.format_help()))
    return module, arguments
