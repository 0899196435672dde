"""Kill a run at random, restart it, repeat until it ends, and compare it with a run that nothing happened to.

    python -m tests.bench.kill --trials 100 --ranks 1 2 4

Every trial kills (SIGKILL, one time in four SIGTERM) a random rank, or all of them, half of the time while a checkpoint
is being written, and ends when the run does. It must then equal the undisturbed run to the last bit: weights, average,
optimizer, counters, and the log but for its clock.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import resnet.run  # noqa: F401  (imported before the fork, so that ranks start at once)
from resnet.rundir.status import read_status
from resnet.tools.compare import compare_runs
from tests.processes import start_ranks, wait_ranks

RECIPE = [
    *("recipe=quickstart", "model.name=null", "model.block=basic", "model.layers=[1,1,1]"),
    *("model.stochastic_depth=0.1", "augment.mixup=0.2", "data.per_class=8", "data.size=32", "data.num_workers=1"),
    *("augment.train_size=24", "augment.val_size=24", "augment.val_resize=28"),
    *("epochs=4", "batch_size=16", "max_batch_per_device=4", "ema.decay=0.9", "optimizer.lr=0.01", "watchdog=2"),
    *("checkpoint.keep=1", "checkpoint.every=2 steps", "log_every=2", "wandb.mode=disabled", "progress=off"),
]
SECONDS = 120


class Outcome(NamedTuple):
    kills: int
    attempts: int
    differences: list[str]


def straight(folder: Path, world_size: int, extra: Sequence[str] = ()) -> tuple[Path, float]:
    """Train undisturbed; the run directory, and the seconds it took."""
    begin = time.monotonic()
    name = f"straight-{world_size}"
    codes = wait_ranks(start_ranks(_argv(folder, name, extra), world_size, folder / f"{name}.txt"), SECONDS)
    if any(codes):
        raise RuntimeError(f"exit codes {codes}:\n{(folder / f'{name}.txt').read_text()[-3000:]}")
    return folder / name, time.monotonic() - begin


def trial(
    folder: Path,
    name: str,
    worlds: Sequence[int],
    reference: Path,
    seconds: float,
    seed: int,
    extra: Sequence[str] = (),
) -> Outcome:
    """Train with kills, on a number of ranks drawn from `worlds` at each attempt, until the run is finished."""
    chance = random.Random(seed)
    kills = attempts = 0
    run_dir, output = folder / name, folder / f"{name}.txt"
    while read_status(run_dir).get("state") != "finished" or not (run_dir / "final.safetensors").is_file():
        attempts += 1
        if attempts > 40:
            return Outcome(kills, attempts, [f"not finished after {attempts} attempts:\n{output.read_text()[-3000:]}"])
        children = start_ranks(_argv(folder, name, extra), chance.choice(worlds), output)
        if attempts <= 6:
            kills += _kill_some(children, run_dir, chance, seconds)
        begin = time.monotonic()
        codes = wait_ranks(children, SECONDS)
        if time.monotonic() - begin > SECONDS or (2 in codes):
            return Outcome(kills, attempts, [f"exit codes {codes}:\n{output.read_text()[-3000:]}"])
    return Outcome(kills, attempts, compare_runs(reference, run_dir))


def _kill_some(children: list[int], run_dir: Path, chance: random.Random, seconds: float) -> int:
    """Wait for a moment of chance, or for a save, and kill one rank or all."""
    deadline = time.monotonic() + chance.uniform(0.0, seconds)
    if chance.random() < 0.5:
        deadline = time.monotonic() + seconds
        skipped = chance.randrange(4)
        seen: set[str] = set()
        while time.monotonic() < deadline and len(seen) <= skipped:
            seen.update(path.name for path in (run_dir / "checkpoints").glob("*.tmp"))
            time.sleep(0.0005)
        deadline = time.monotonic() + chance.uniform(0, 0.01)
    time.sleep(max(0.0, deadline - time.monotonic()))
    victims = children if chance.random() < 0.3 else [chance.choice(children)]
    number = signal.SIGTERM if chance.random() < 0.25 else signal.SIGKILL
    for child in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)
    return len(victims)


def _argv(folder: Path, name: str, extra: Sequence[str]) -> list[str]:
    return [*RECIPE, f"data.train={folder}/shapes", f"run.root={folder}", f"run.name={name}", *extra]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100, help="in all, shared by the numbers of ranks")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kill-"))
    kills = attempts = failures = 0
    references = {world: straight(folder, world) for world in arguments.ranks}
    begin = time.monotonic()
    for number in range(arguments.trials):
        world = arguments.ranks[number % len(arguments.ranks)]
        outcome = trial(folder, f"trial-{number}", [world], *references[world], seed=arguments.seed + number)
        kills, attempts = kills + outcome.kills, attempts + outcome.attempts
        if outcome.differences:
            failures += 1
            print(f"trial {number} ({world} ranks):", *outcome.differences[:5], sep="\n  ")
        else:
            shutil.rmtree(folder / f"trial-{number}")
        print(
            f"{number + 1} trials, {kills} kills, {attempts} attempts, {failures} failures, "
            f"{time.monotonic() - begin:.0f} s",
            flush=True,
        )
    if failures:
        sys.exit(f"{failures} failed; what they left is in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
