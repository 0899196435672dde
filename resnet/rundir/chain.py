"""RUN/chain/N: what follows a run or a sweep's winner, step by step. Written by `launch chain` and by the steps' jobs.

chain.json names the steps and their jobs; N-COMMAND.json is how a step is, N-COMMAND.log what it printed; winner.json
is, of a sweep, the trial that the first step found.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet.rundir.files import read_json, to_json, write_atomic
from resnet.rundir.status import read_status

FORMAT = 1
TRAIN = "train"
OVER = ("finished", "failed", "cancelled", "stopped")
"""States of a step that has ended, by its own word; before it is `running` or, in a job that was requeued, `queued`."""
_TAIL_BYTES = 10_000
_NOT_OURS = ("srun:", "slurmstepd:", "submitit ")


def new_folder(subject: Path) -> Path:
    """Make the folder of a further chain of a run, or of a sweep."""
    number = 1 + max(_numbers(subject), default=0)
    (folder := subject / "chain" / str(number)).mkdir(parents=True)
    return folder


def newest_folder(subject: Path) -> Path | None:
    numbers = _numbers(subject)
    return subject / "chain" / str(max(numbers)) if numbers else None


def _numbers(subject: Path) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir(f"{subject}/chain") if name.isdecimal()]
    return []


def write_chain(folder: Path, content: dict[str, Any]) -> None:
    write_atomic(folder / "chain.json", to_json({"format": FORMAT, **content}, indent=1) + "\n")


def read_chain(folder: Path) -> dict[str, Any]:
    """The content of chain.json: `subject`, `folder` (where relative paths start), `cluster`, `steps`, ...

    Each step has `command`, `words`, `acts_on` (a run; None: the sweep's winner), `makes` (a new run, or None) and
    `job_id`. Raises ValueError where it is damaged, or not there.
    """
    content = read_json(folder / "chain.json")
    subject, steps = content.get("subject"), content.get("steps")
    if not (isinstance(subject, str) and isinstance(steps, list) and steps and all(map(_is_step, steps))):
        raise ValueError(f"{folder / 'chain.json'} is damaged (it holds no steps); remove {folder} to go on without it")
    return content


def _is_step(step: Any) -> bool:
    texts = (str, type(None))
    return (
        isinstance(step, dict)
        and isinstance(step.get("command"), str)
        and isinstance(step.get("words"), list)
        and all(key in step and isinstance(step[key], texts) for key in ("acts_on", "makes", "job_id"))
    )


def step_name(content: dict[str, Any], number: int) -> str:
    """As files of the step are called. number: from 1."""
    return f"{number}-{content['steps'][number - 1]['command']}"


def job_name(content: dict[str, Any], number: int) -> str:
    """As the step's job is called in the queue."""
    return f"{Path(content['subject']).name}.{step_name(content, number)}"


def log_of(folder: Path, content: dict[str, Any], number: int) -> Path:
    return folder / f"{step_name(content, number)}.log"


def read_step(folder: Path, content: dict[str, Any], number: int) -> dict[str, Any]:
    """How a step is by its own word: state, start, end, reason ...; empty before it has begun, or where damaged."""
    with contextlib.suppress(ValueError, OSError):
        return read_json(folder / f"{step_name(content, number)}.json")
    return {}


def note_step(folder: Path, content: dict[str, Any], number: int, **fields: Any) -> None:
    """Update how a step is."""
    told = {"format": FORMAT, **read_step(folder, content, number), **fields}
    write_atomic(folder / f"{step_name(content, number)}.json", to_json(told, indent=1) + "\n")


def begin_step(folder: Path, content: dict[str, Any], number: int, **fields: Any) -> Path:
    """Note that a step runs; returns the run that it acts on.

    Raises ValueError where that is not finished, or where nothing of the sweep is.
    """
    now = time.time()
    # Of a job that was requeued, of its first attempt.
    first = read_step(folder, content, number).get("first_start", now)
    note_step(folder, content, number, state="running", first_start=first, start=now, end=None, reason=None, **fields)
    run_dir = acts_on(folder, content, number)
    if (state := read_status(run_dir).get("state")) != "finished":
        raise ValueError(f"{run_dir.name} is not finished (it is {state}): `launch retry` continues it")
    return run_dir


def refuse_foreign(step: dict[str, Any]) -> None:
    """Raise ValueError where a run has the name, free when it was settled, of the one that a step is to make."""
    if step["makes"] and Path(step["makes"]).exists():
        raise ValueError(f"{step['makes']} is there already, and was not made by this step: choose another name")


def end_step(folder: Path, content: dict[str, Any], number: int, state: str, reason: str | None = None) -> None:
    note_step(folder, content, number, state=state, reason=reason, end=time.time())


def acts_on(folder: Path, content: dict[str, Any], number: int) -> Path:
    """The run that a step acts on; of a sweep the winner, which is found once for all steps.

    Raises ValueError where no trial has finished.
    """
    if named := content["steps"][number - 1]["acts_on"]:
        return Path(named)
    known = read_json(folder / "winner.json")
    if not known:
        known = _winner(Path(content["subject"]))
        write_atomic(folder / "winner.json", to_json({"format": FORMAT, **known}, indent=1) + "\n")
    return Path(known["run"])


def _winner(sweep_dir: Path) -> dict[str, Any]:
    # Not for every `launch status`: they take a tenth of a second.
    from resnet.rundir.state import own_rows
    from resnet.rundir.sweep.results import folders, results, sweep_so_far

    sweep = sweep_so_far(sweep_dir)
    board = results(sweep, own_rows(folders(sweep)))
    if board.best is None or board.best.best_trial is None:
        told = ", ".join(f"{count} {state}" for state, count in board.counts.items())
        raise ValueError(f"{board.name} has no winner: no trial has finished with a val/{board.metric} ({told})")
    run_dir = sweep_dir / board.best.best_trial
    return {"run": str(run_dir), "setting": board.best.label, "metric": board.metric, "value": board.best.value}


def words_of_step(folder: Path, content: dict[str, Any], number: int) -> list[str]:
    """The command line of a step: of `resnet`, or of train.py behind its `train`."""
    step, run_dir = content["steps"][number - 1], acts_on(folder, content, number)
    if step["command"] == TRAIN:
        return train_words(run_dir, run_dir, step["words"])
    return [step["command"], str(run_dir), *step["words"]]


def train_words(recipe: Path, run_dir: Path, words: Sequence[str]) -> list[str]:
    """What trains on from a run's weights, in a new run, by a recipe with changes."""
    # In quotes a path is text to YAML, whatever it holds.
    return [f"recipe={recipe}", f"model.pretrained={to_json(str(run_dir))}", "resume=auto", *words]


def last_words(log: Path, start: int = 0) -> str:
    """The last line that the program printed after so many bytes of its log."""
    try:
        with open(log, "rb") as file:
            file.seek(max(start, file.seek(0, 2) - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    said = (line.strip() for line in reversed(lines))
    return next((line for line in said if line and not line.startswith(_NOT_OURS)), "")
