"""`launch local`: train here through `accelerate launch`, whose flags, signals and exit codes it takes care of.

Accelerate 1.15 dies of a signal and leaves the trainer behind (one process), or kills what still saves 30 s after it
(several); it turns every exit code into 1, with a traceback. So it runs in a session of its own, the ranks get the
signals from here, and the code of the first rank that did not end well is handed on.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial

from launch.derived import follows
from launch.runs.here import own_environment, visible_gpus
from recipes.load import load
from recipes.schema.recipe import Recipe
from resnet.process import exit_codes
from resnet.process.command_lines import accelerate_argv
from resnet.process.processes import catches, children
from resnet.process.signals import SIGNALS, die_with_parent


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
    words = [*arguments.words, *(["device=cpu"] if arguments.cpu_ranks else [])]
    # Before there is something to stop: what arrives from here on is for the run.
    received: list[int] = []
    for number in SIGNALS:
        signal.signal(number, lambda number, _: received.append(number))
    process = subprocess.Popen(
        [*accelerate_argv(ranks), *words, *(["--debug"] if arguments.debug else [])],
        env=own_environment(),
        start_new_session=True,
        preexec_fn=partial(die_with_parent, signal.SIGKILL, os.getpid()),
    )
    return _attend(process, ranks, received)


def _count_ranks(arguments: argparse.Namespace, recipe: Recipe) -> int:
    for option, count in (("--gpus", arguments.gpus), ("--cpu-ranks", arguments.cpu_ranks)):
        if count is not None and count < 1:
            raise ValueError(f"{option} {count}: give 1 or more")
    if arguments.cpu_ranks:
        if recipe.device == "cuda":
            raise ValueError("device=cuda asks for a GPU, and --cpu-ranks for none: leave one of them out")
        return arguments.cpu_ranks
    if recipe.device == "cpu":
        if arguments.gpus:
            raise ValueError("device=cpu trains without GPUs: leave out --gpus, or take --cpu-ranks")
        return 1
    found = visible_gpus()
    if arguments.gpus and arguments.gpus > found:
        raise ValueError(f"--gpus {arguments.gpus}, but {found} can be seen here (CUDA_VISIBLE_DEVICES, nvidia-smi -L)")
    return arguments.gpus or max(1, found)


def _attend(process: subprocess.Popen[bytes], count: int, received: list[int]) -> int:
    """Pass on what is received until the run has ended; returns its exit code."""
    begun, interrupts = False, 0
    while process.poll() is None:
        # At their very end ranks no longer catch signals, and have begun all the same.
        begun = begun or len(_ranks(process.pid)) == count
        while received:
            number = received.pop(0)
            interrupts += number == signal.SIGINT
            if not begun or interrupts > 2:
                _kill(process)
                state = "at once" if begun else "before the training began, nothing was written"
                print(f"launch local: stopped {state}", file=sys.stderr)
                return exit_codes.INTERRUPTED if number == signal.SIGINT else exit_codes.STOPPED
            for rank in _ranks(process.pid):
                _send(os.kill, rank, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    code = process.returncode
    if code in exit_codes.OWN:
        return code
    who, number = ("a process of the training", code - 128) if code > 128 else ("accelerate", -code)
    with contextlib.suppress(ValueError):
        print(f"launch local: {who} was killed ({signal.Signals(number).name})", file=sys.stderr)
    return exit_codes.FAILED


def _ranks(launcher: int) -> list[int]:
    """Children of a launcher that heed the signals: until torch is imported, one would just kill them."""
    return [child for child in children(launcher) if catches(child, signal.SIGUSR2)]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With all ranks: torch's launcher gives each one a session of its own."""
    process.send_signal(signal.SIGSTOP)  # it starts no more of them
    for leader in (*children(process.pid), process.pid):
        _send(os.killpg, leader, signal.SIGKILL)
    process.wait()


def _send(send: Callable[[int, int], None], target: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        send(target, number)
