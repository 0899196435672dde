"""The steps of a chain on this machine, one after the other."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from launch.chain.plan import Step
from launch.derived import follows
from launch.runs.attend import copy_output, train_here
from launch.runs.chain import this_process
from launch.runs.checks import check_paths
from launch.runs.here import programs_environment, ranks_here
from launch.runs.send import uninterrupted
from recipes.load import Loaded
from recipes.schema.recipe import Recipe
from resnet.process.exit_codes import FAILED, FINISHED, INTERRUPTED, STOPPED
from resnet.process.signals import die_with_parent
from resnet.rundir.chain import (
    TRAIN,
    begin_step,
    end_step,
    last_words,
    log_of,
    new_folder,
    refuse_foreign,
    words_of_step,
    write_chain,
)
from resnet.rundir.status import status_or_nothing


def run_here(subject: Path, steps: Sequence[Step], recipes: Sequence[Recipe]) -> int:
    """Do the steps; returns 0, or the exit code of the first that fails, which is the last that is done.

    Raises ValueError, with nothing begun, where a recipe cannot be trained here.
    """
    ranks = [ranks_here(recipe.device) for recipe in recipes]
    for recipe, count in zip(recipes, ranks, strict=True):
        follows(Loaded(recipe, {}), count)
        check_paths(recipe, None)
    folder = new_folder(subject)
    content = {"subject": str(subject), "folder": str(Path.cwd()), "cluster": "local", "steps": steps}
    write_chain(folder, content | this_process())
    with _ended_by_signals():
        for number, step in enumerate(steps, 1):
            print(f"step {number} of {len(steps)}: {step['command']}", file=sys.stderr, flush=True)
            count = ranks.pop(0) if step["command"] == TRAIN else 1
            if code := _do(folder, content, number, count):
                return code
    return FINISHED


def _do(folder: Path, content: dict[str, Any], number: int, ranks: int) -> int:
    step = content["steps"][number - 1]
    try:
        begin_step(folder, content, number)
        refuse_foreign(step)
        words = words_of_step(folder, content, number)
        log = log_of(folder, content, number)
        code = train_here(words, ranks, log) if step["command"] == TRAIN else _run(words, log)
        told = status_or_nothing(Path(step["makes"])) if step["command"] == TRAIN else {}
        reason = told.get("reason") or last_words(log) or f"exit code {code}"
    except ValueError as error:
        code, reason = FAILED, str(error)
        print(f"launch chain: step {number} ({step['command']}): {error}", file=sys.stderr)
    except KeyboardInterrupt as interrupt:
        code, reason = INTERRUPTED, str(interrupt) or "interrupted"
    state = {FINISHED: "finished", STOPPED: "stopped", INTERRUPTED: "cancelled"}.get(code, "failed")
    with uninterrupted():
        end_step(folder, content, number, state, reason if code else None)
    return code


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Take the signals that `launch cancel` and a terminal that closes send as Ctrl-C is taken."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        # nohup has SIGHUP ignored.
        if handler != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(f"signal {signal.Signals(number).name}")


def _run(words: Sequence[str], log: Path) -> int:
    """Run a command of `resnet`; what it prints goes to its log too."""
    process = subprocess.Popen(
        [sys.executable, "-m", "resnet", *words],
        env=programs_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=partial(die_with_parent, signal.SIGTERM, os.getpid()),
    )
    with process:
        try:
            copy_output(process, log)
            return process.wait()
        except BaseException:
            process.terminate()
            raise
