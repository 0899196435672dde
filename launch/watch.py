"""Look again and again at what goes on, without asking more of a slow cluster than it can give."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from recipes.text import format_duration

REDRAW_SECONDS, REDRAW_SLURM_SECONDS = 2, 10
PATIENCE, REDRAW_MOST_SECONDS = 10, 300
"""A look that takes long, of a slow controller or a slow file system, is repeated after so many times its length."""


class View(NamedTuple):
    """What one look shows."""

    lines: list[str]
    over: bool
    asked_slurm: bool


def watch(look: Callable[[], View]) -> None:
    """Draw what a look shows until all is over, or Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            start = time.monotonic()
            view = look()
            pause, told = _pause(time.monotonic() - start, view.asked_slurm)
            lines = [*view.lines, *told]
            if sys.stdout.isatty():
                height = shutil.get_terminal_size().lines
                if len(lines) >= height:
                    lines = [*lines[: height - 2], f"... and {len(lines) - height + 2} more lines"]
                print(end="\033[H\033[2J")
            print("\n".join(lines), flush=True)
            if view.over:
                return
            time.sleep(pause)


def _pause(took: float, asked_slurm: bool) -> tuple[float, list[str]]:
    """Seconds to the next look, and a line that says so where it is later than usual. took: seconds of this one."""
    usual = REDRAW_SLURM_SECONDS if asked_slurm else REDRAW_SECONDS
    patient = min(PATIENCE * took, REDRAW_MOST_SECONDS)
    if patient < 2 * usual:
        return usual, []
    slow = "Slurm is slow" if asked_slurm else "looking is slow"
    return patient, [f"{slow} ({took:.1f} s): the next look is in {format_duration(patient)}"]
