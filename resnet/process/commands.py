"""A program of subcommands, as `launch` and `resnet` are: what each is called by, its mistakes and its exit codes."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from recipes.text import suggestion, unknown_words
from resnet.process.exit_codes import BROKEN_PIPE, FAILED, FINISHED, INTERRUPTED, MISTAKE
from resnet.process.mistakes import is_told_elsewhere
from resnet.process.version import VERSION

Completer = Callable[[str], Iterable[str]]
"""From the beginning of a word to the words it may become."""


class Command(NamedTuple):
    """A subcommand."""

    what: str
    """What it does, in a line that begins with a verb."""
    module: Callable[[], Any]
    """Imports what has `add_arguments(parser)` and `run(arguments)`, which returns an exit code (None: 0) and raises
    ValueError for what the user got wrong, OSError for what the system refused.

    With `TAKES_COMMANDS` it is given the words behind the first `--`, as they are, as `arguments.commands`."""


def run_program(
    program: str,
    commands: Mapping[str, Command],
    argv: Sequence[str],
    completers: Callable[[], Mapping[str, Completer]],
) -> int:
    """Run the subcommand that a command line names; returns the exit code.

    A mistake ends in one message, with a traceback under --debug. completers: by the metavar of an argument.
    """
    if "_ARGCOMPLETE" in os.environ:
        _complete(program, commands, completers())
    name, *words = argv or [""]
    if name in ("-h", "--help", ""):
        print(_help(program, commands), file=sys.stdout if name else sys.stderr)
        return FINISHED if name else MISTAKE
    if name == "--version":
        print(f"{program} {VERSION}")
        return FINISHED
    if name not in commands:
        hint = suggestion(name, commands, count=1).replace("mean ", f"mean {program} ")
        print(f"{program}: no command {name!r}: {hint}", file=sys.stderr)
        return MISTAKE
    try:
        module = commands[name].module()
        code = module.run(parse(program, name, commands[name].what, module, words))
        print(end="", flush=True)
        return code or FINISHED
    except BrokenPipeError:
        # Python would complain when it flushes what is left at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (ValueError, OSError, subprocess.SubprocessError) as error:
        if "--debug" in words:
            traceback.print_exc()
        if not is_told_elsewhere(error):
            print(f"{program} {name}: {error}", file=sys.stderr)
        return MISTAKE if isinstance(error, ValueError) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def _help(program: str, commands: Mapping[str, Command]) -> str:
    width = max(map(len, commands)) + 2
    lines = [f"  {name:{width}}{command.what}" for name, command in commands.items()]
    return "\n".join([f"usage: {program} COMMAND ...", "", *lines, "", f"{program} COMMAND --help says more."])


def parse(program: str, name: str, what: str, module: Any, words: list[str]) -> argparse.Namespace:
    """The arguments of a subcommand. Raises ValueError for options that it does not have."""
    own = words.index("--") if hasattr(module, "TAKES_COMMANDS") and "--" in words else len(words)
    description = f"{what[0].upper()}{what[1:]}."
    parser = argparse.ArgumentParser(prog=f"{program} {name}", description=description, allow_abbrev=False)
    _add_arguments(parser, module)
    arguments, unknown = parser.parse_known_intermixed_args(words[:own])
    arguments.commands = words[own + 1 :]
    if unknown:
        raise ValueError(unknown_words(unknown, parser.format_help()))
    return arguments


def _add_arguments(parser: argparse.ArgumentParser, module: Any) -> None:
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of a mistake")


def _complete(program: str, commands: Mapping[str, Command], completers: Mapping[str, Completer]) -> None:
    """Answer a shell that asks, by argcomplete's protocol, what a line may become; it leaves then."""
    import argcomplete

    parser = argparse.ArgumentParser(prog=program, allow_abbrev=False)
    parser.add_argument("--version", action="store_true")
    subparsers = parser.add_subparsers()
    for name, command in commands.items():
        subparser = subparsers.add_parser(name, help=command.what, allow_abbrev=False)
        _add_arguments(subparser, command.module())
        for action in subparser._actions:
            if completer := completers.get(str(action.metavar)):
                action.completer = lambda prefix, completer=completer, **_: list(completer(prefix))  # pyright: ignore[reportAttributeAccessIssue]
    argcomplete.autocomplete(parser, validator=lambda word, prefix: word.startswith(prefix))
