"""Training in an allocation: in a terminal inside of it, shown until it ends; from elsewhere, left to itself."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from launch.runs.held import Holding, attend
from launch.runs.send import prepare, shown, submit, submit_command
from recipes.load import Loaded
from recipes.text import plural
from resnet.process.exit_codes import STOPPED
from resnet.process.signals import SIGNALS
from resnet.rundir.status import status_or_nothing


def train_held(loaded: Loaded, holding: Holding) -> int:
    """Train in an allocation and show it until the run has ended; returns its exit code. Raises ValueError."""
    prepared = prepare(loaded, [holding.place])
    begin = partial(submit, prepared, [holding.place], holding=holding)
    return attended(holding, prepared.run_dir, begin, " (--here: this machine alone)")


def attended(holding: Holding, run_dir: Path, begin: Callable[[], object], hint: str = "") -> int:
    """Begin a run, show what it prints until it has ended, and say how it goes on; returns its exit code.

    hint: goes behind the line that says where it trains.
    """
    received: list[int] = []
    # Before there is something to stop: what arrives from here on is for the run.
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in heard}
    try:
        begin()
        print(f"{placed(holding, run_dir)}{hint}", file=sys.stderr, flush=True)
        code = attend(holding, run_dir, received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code == STOPPED:
        print(
            f"{run_dir.name} is stopped: {status_or_nothing(run_dir).get('reason')}",
            *_go_on(run_dir),
            sep="\n",
            file=sys.stderr,
        )
    return code


def placed(holding: Holding, run_dir: Path) -> str:
    """Where a run trains, in a line."""
    profile, allocation = holding.fit.profile, holding.allocation
    size, cores = (
        f"{plural(profile.most_nodes, 'node')} x {profile.devices_in_words}",
        plural(profile.cpus_per_rank, "core"),
    )
    return "; ".join([f"{run_dir.name} trains in job {allocation.job_id}: {size}, {cores} a rank", *holding.fit.notes])


def _go_on(run_dir: Path) -> list[str]:
    """What to type for a run that was stopped."""
    name = shown(run_dir)
    return [
        f"  go on    launch retry {name}     (here; --in JOBID: in another allocation)",
        f"  send     {submit_command(run_dir)}",
    ]
