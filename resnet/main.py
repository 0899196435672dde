"""The program behind train.py: from a command line to an exit code."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from recipes.load import load
from resnet.process.environment import ATTEMPT
from resnet.process.exit_codes import MISTAKE, STOPPED
from resnet.process.mistakes import OfOneRank
from resnet.process.signals import Signals, die_with_launcher
from resnet.process.stages import begin, reached
from resnet.process.streams import forgive_output
from resnet.rundir.read_ahead import read_ahead


def main(argv: Sequence[str], signals: Signals | None = None) -> int:
    """Run what a command line says; returns the exit code.

    signals: those already listened for, of a caller that did so before.
    """
    begin()
    debug = "--debug" in argv
    signals = signals or Signals()
    signals.install()
    forgive_output()
    die_with_launcher()
    try:
        recipe, _, notes = load([argument for argument in argv if argument != "--debug"])
        reached("recipe")
        if recipe.run.name:
            read_ahead(Path(recipe.run.root).expanduser() / recipe.run.name)
        # Only now, so that a mistake is told at once.
        program = _heavy()
        reached("imports")
        if signals.received and "WORLD_SIZE" not in os.environ and ATTEMPT not in os.environ:
            # Nothing has begun. (Ranks, and a job's batch script, are told by the run that it has stopped.)
            print(f"stopped ({signals.received}) before anything was written", file=sys.stderr)
            return STOPPED
        return program.train(recipe, signals, notes)
    except ValueError as error:
        if debug:
            traceback.print_exc()
        # Most mistakes all ranks make. A lone process tells its own, whatever rank its environment says it is.
        alone = isinstance(error, OfOneRank) or os.environ.get("WORLD_SIZE", "1") == "1"
        if alone or os.environ.get("RANK", "0") == "0":
            print(f"train.py: {error}", file=sys.stderr)
        return MISTAKE


def _heavy() -> ModuleType:
    """The module that trains, whose imports take seconds."""
    collects, first = gc.isenabled(), "resnet.run" not in sys.modules
    # While modules are imported nothing is garbage, and looking for it takes a third of the time.
    gc.disable()
    try:
        from resnet import run

        if first:
            # They stay to the end: no later look need take them in.
            gc.freeze()
    finally:
        if collects:
            gc.enable()
    return run
