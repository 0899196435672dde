"""What the batch script of a trial runs where a search chooses its point, or early stopping may end it.

    python -m launch.trial JOBS_FILE COMMAND ...

Around `slurm.batch`: the point is asked for before the first attempt, the trial is watched while it runs, and the
search is told of its end.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from launch.sweep.directory import SweepDir
from launch.sweep.trial_life import ask_trial, finish_trial, note_mistake, prune
from resnet.process.exit_codes import FAILED
from slurm import batch

LOOK_SECONDS = 5.0


def main(argv: Sequence[str]) -> int:
    jobs, run_dir = batch.read_jobs(argv[0])
    job, directory = batch.Job(jobs, run_dir), SweepDir(Path(jobs["sweep"]))
    trial = directory.trial(run_dir.name)
    if directory.is_search and not (run_dir / "slurm" / "recipe.yaml").is_file():
        try:
            directory.write_recipe(ask_trial(directory, trial))
        except ValueError as error:
            note_mistake(directory, trial, error)
            print(error, file=sys.stderr)
            batch.leave(job)
            return FAILED
    ended = threading.Event()
    if directory.content["early_stop"]:
        threading.Thread(target=_watch, args=(directory.path, trial["name"], ended), daemon=True).start()
    code = job.run(argv[1:])
    ended.set()
    try:
        # Before the page, which may take until the time limit.
        finish_trial(directory, trial)
    finally:
        batch.leave(job)
    return code


def _watch(sweep_dir: Path, trial: str, ended: threading.Event) -> None:
    while not ended.wait(LOOK_SECONDS):
        # The batch script sees the file, and tells the ranks.
        with contextlib.suppress(ValueError, OSError):
            prune(sweep_dir, trial)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
