"""A training on this machine through `accelerate launch`, whose flags, signals and exit codes are taken care of.

Accelerate 1.15 dies of a signal and leaves the trainer behind (one process), or kills what still saves 30 s after it
(several). So it runs in a session of its own, the ranks get the signals from here, and the code of the first rank that
did not end well is handed on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from launch.runs.here import own_environment
from resnet.process.command_lines import accelerate_argv
from resnet.process.exit_codes import FAILED, INTERRUPTED, OWN, STOPPED
from resnet.process.processes import catches, children, kill_all
from resnet.process.signals import SIGNALS, die_with_parent

LAST_SECONDS = 5.0


def train_here(words: Sequence[str], ranks: int, log: Path | None = None) -> int:
    """Train what the words say on so many ranks, until the run has ended; returns its exit code.

    log: a file for what it prints, which goes on to this process's output.
    """
    received: list[int] = []
    # Before there is something to stop: what arrives from here on is for the run.
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in SIGNALS}
    try:
        process = subprocess.Popen(
            [*accelerate_argv(ranks), *words],
            env=own_environment(),
            start_new_session=True,
            preexec_fn=partial(die_with_parent, signal.SIGKILL, os.getpid()),
            stdout=subprocess.PIPE if log else None,
            stderr=subprocess.STDOUT if log else None,
        )
        if log is None:
            return attend(process, ranks, received)
        copying = threading.Thread(target=copy_output, args=(process, log), daemon=True)
        copying.start()
        code = attend(process, ranks, received)
        # What a process that outlives the ranks prints is not waited for.
        copying.join(LAST_SECONDS)
        return code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def copy_output(process: subprocess.Popen[bytes], log: Path) -> None:
    """Write what a process prints to a file and to this one's output, until its end."""
    assert process.stdout is not None
    with open(log, "wb") as file:
        while chunk := os.read(process.stdout.fileno(), 65_536):
            file.write(chunk)
            file.flush()
            # Where nobody reads it any more, the file still has it.
            with contextlib.suppress(OSError):
                sys.stdout.buffer.write(chunk)
                sys.stdout.flush()


def attend(process: subprocess.Popen[bytes], count: int, received: list[int]) -> int:
    """Pass on what is received until the run of so many ranks has ended; returns its exit code."""
    begun, interrupts = False, 0
    while process.poll() is None:
        # At their very end ranks no longer catch signals, and have begun all the same.
        begun = begun or len(ranks_of(process.pid)) == count
        while received:
            number = received.pop(0)
            interrupts += number == signal.SIGINT
            if not begun or interrupts > 2:
                kill_all(process)
                state = "at once" if begun else "before the training began, nothing was written"
                print(f"launch local: stopped {state}", file=sys.stderr)
                return INTERRUPTED if number == signal.SIGINT else STOPPED
            for rank in ranks_of(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rank, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    code = process.returncode
    if code in OWN:
        return code
    who, number = ("a process of the training", code - 128) if code > 128 else ("accelerate", -code)
    with contextlib.suppress(ValueError):
        print(f"launch local: {who} was killed ({signal.Signals(number).name})", file=sys.stderr)
    return FAILED


def ranks_of(launcher: int) -> list[int]:
    """Children of a launcher that heed the signals: until torch is imported, one would just kill them."""
    return [child for child in children(launcher) if catches(child, signal.SIGUSR2)]
