"""How a bayes sweep's lock holds up under many workers: real processes that ask for trials and tell of their ends.

    python -m tests.bench.study --workers 1 8 32 64 --trials 512

Each worker asks for a trial, "trains" for a time that is drawn (a pause), writes what a trial that has finished leaves,
and tells. Ask and tell hold the lock of the sweep, among all nodes; how long they take, waiting included, is what
grows with the workers. `--storage URL` measures a database in the journal's place.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from random import Random
from typing import NamedTuple

import optuna  # noqa: F401  (which takes seconds, before the workers are forked)

from launch.sweep.study import ask, tell, trial_name
from launch.sweep.sweep_json import sweep_json
from launch.sweep.sweep_types import Distribution, Sweep
from resnet.rundir.files import to_json, write_atomic

PARAMETERS = {
    "optimizer.lr": Distribution("uniform", 1e-4, 1.0, log=True),
    "optimizer.weight_decay": Distribution("uniform", 1e-6, 1e-1, log=True),
}


class Took(NamedTuple):
    ask: float
    """Seconds, the wait for the lock included."""
    tell: float


def make_sweep(folder: Path, trials: int, storage: str | None) -> None:
    sweep = Sweep(
        "bayes", {"recipe": "bench"}, dict(PARAMETERS), ("recipe", *PARAMETERS), metric="loss", run_cap=trials
    )
    content = {"name": folder.name, "seed": 0, "created": int(time.time()), "storage": storage}
    folder.mkdir(parents=True)
    write_atomic(folder / "sweep.json", to_json(sweep_json(sweep) | content))


def work(folder: Path, numbers: range, seconds: float) -> list[Took]:
    """One worker's trials, in turn."""
    found = []
    for number in numbers:
        start = time.perf_counter()
        point = ask(folder, number)
        asked = time.perf_counter()
        time.sleep(seconds * Random(number).uniform(0.5, 1.5))
        loss = sum(abs(float(text) - 0.01) for text in point.values())
        (folder / trial_name(number) / "metrics.jsonl").write_text(to_json({"step": 1, "val/loss": loss}) + "\n")
        end = time.perf_counter()
        tell(folder, number, "finished")
        found.append(Took(asked - start, time.perf_counter() - end))
    return found


def measured(folder: Path, workers: int, trials: int, seconds: float) -> tuple[list[Took], float]:
    """What each trial waited, and seconds in all."""
    shares = [range(worker, trials, workers) for worker in range(workers)]
    start = time.perf_counter()
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        found = pool.starmap(work, [(folder, share, seconds) for share in shares], chunksize=1)
    return [took for share in found for took in share], time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--trials", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=10.0, help="that a trial trains, on average")
    parser.add_argument("--storage", help="URL of a database, as of launch sweep; {workers} in it makes each its own")
    arguments = parser.parse_args()
    # Waits of more than 10 s would each be told.
    logging.disable(logging.WARNING)
    print(f"{arguments.trials} trials of {arguments.seconds:g} s; seconds, waiting included")
    print("| workers | ask, median | ask, 95% | tell, median | tell, 95% | longest | share of the time |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for workers in arguments.workers:
            storage = arguments.storage and arguments.storage.replace("{workers}", str(workers))
            make_sweep(folder := Path(temporary, f"sweep-{workers}"), arguments.trials, storage)
            found, total = measured(folder, workers, arguments.trials, arguments.seconds)
            figures = [f"{figure:.2f}" for side in zip(*found, strict=True) for figure in _of(side)]
            longest = max(max(took) for took in found)
            share = sum(sum(took) for took in found) / (total * workers)
            print(f"| {workers} | {' | '.join(figures)} | {longest:.2f} | {share:.1%} |", flush=True)


def _of(seconds: tuple[float, ...]) -> tuple[float, float]:
    return statistics.median(seconds), sorted(seconds)[int(0.95 * (len(seconds) - 1))]


if __name__ == "__main__":
    main()
