"""How long `launch` takes with thousands of runs, and with a sweep of as many trials.

    python -m tests.bench.many_runs --runs 10000

Makes runs as training leaves them (status, recipe, provenance, metrics, job: by the program's own writers) and a sweep
whose trials have all finished, in a temporary folder, and times the commands that look at them, each in a process of
its own. The first look of a command is listed apart: it may have more to read.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from launch.commands import sweep as sweep_command
from launch.runs.job_record import Job, write_job
from launch.sweep.directory import SweepDir
from resnet.checkpoint.commit import commit
from resnet.rundir.files import write_atomic
from slurm.profile import load_profile
from tests.fabricated import STEPS, make_run

EPOCHS = 12
KEYS = ("optimizer.lr", "seed")
SEEDS = 100


def make_runs(root: Path, count: int) -> None:
    """Of a hundred runs one has failed, one was stopped, and a few of all run."""
    root.mkdir(parents=True)
    for number in range(count):
        state = {1: "failed", 2: "stopped"}.get(number % 100, "finished")
        state = "running" if number < 3 else state
        changes = (f"optimizer.lr={0.001 * (1 + number // SEEDS):.4g}", f"seed={number % SEEDS}")
        run = make_run(root / f"run-{number:05d}", *changes, epochs=EPOCHS, top1=70 + number % 97 / 10, state=state)
        _finish(run, str(1000 + number))


def make_sweep(root: Path, count: int) -> list[str]:
    """A sweep by `launch sweep` itself, whose trials are then made rather than trained; returns the command's words."""
    words = ["recipe=quickstart", f"epochs={EPOCHS}", f"run.root={root}"]
    words += [f"optimizer.lr=linspace(0.001,0.1,{max(1, count // SEEDS)})", f"seed=range(0,{min(count, SEEDS)},1)"]
    words += ["--name", "big", "--yes"]
    parser = argparse.ArgumentParser()
    sweep_command.add_arguments(parser)
    with mock.patch("launch.sweep.here.train_here", return_value=0), contextlib.redirect_stdout(io.StringIO()):
        sweep_command.run(parser.parse_args(words))
    directory = SweepDir(root / "big")
    for number, trial in enumerate(directory.trials):
        changes = [f"{key}={trial['point'][key]}" for key in KEYS]
        run = make_run(root / "big" / trial["name"], *changes, epochs=EPOCHS, top1=70 + number % 97 / 10)
        directory.prepare(trial)
        _finish(run, f"7_{number}")
    return ["sweep", *words]


def _finish(run: Path, job_id: str) -> None:
    """What stands beside the files of a run that Slurm ran."""
    (run / "slurm").mkdir(exist_ok=True)
    write_job(run, Job.to_send(run.name, "h100", load_profile("h100"), Path("/code"), run), job_id)
    commit(run / "checkpoints", EPOCHS * STEPS, {"model.safetensors": b"weights"}, {})


def timed(words: Sequence[str], looks: int) -> list[float]:
    """Seconds of each look. A command that fails ends the benchmark."""
    found = []
    for _ in range(looks):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "launch", *words], capture_output=True, text=True)
        found.append(time.perf_counter() - start)
        if done.returncode:
            sys.exit(f"launch {' '.join(words)}: {done.stderr}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--looks", type=int, default=4, help="of each command; the first is listed apart")
    parser.add_argument("--keep", type=Path, help="make the runs here, or use those that are here, and leave them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.keep or Path(temporary)
        runs, sweeps = place / "runs", place / "sweeps"
        if not runs.is_dir():
            start = time.perf_counter()
            make_runs(runs, arguments.runs)
            again = make_sweep(sweeps, arguments.runs)
            write_atomic(place / "words", "\n".join(again))
            print(f"made in {time.perf_counter() - start:.0f} s", flush=True)
        again = (place / "words").read_text().split("\n")
        os.environ["XDG_STATE_HOME"] = str(place / "state")
        look = ["status", "--root", str(runs)]
        print("| command | first look, s | then, s |\n|---|---|---|")
        for name, words, looks in (
            ("launch --help (imports)", ["--help"], arguments.looks),
            ("status", look, arguments.looks),
            ("status --json", [*look, "--json"], arguments.looks),
            ("status --filter state=failed", [*look, "--filter", "state=failed"], arguments.looks),
            ("status NAME", ["status", "run-00007", "--root", str(runs)], arguments.looks),
            ("status SWEEP", ["status", str(sweeps / "big")], arguments.looks),
            ("status SWEEP --json", ["status", str(sweeps / "big"), "--json"], arguments.looks),
            ("sweep again, with its page", again, 2),
            ("clean --dry-run", ["clean", "--root", str(runs), "--dry-run"], 2),
        ):
            first, *then = timed(words, looks)
            print(f"| {name} | {first:.2f} | {min(then):.2f} |", flush=True)


if __name__ == "__main__":
    main()
