"""Which nodes of allocations were given to runs: Slurm knows of a run's nodes but while its ranks are on them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from resnet.rundir.files import write_atomic
from resnet.rundir.find import state_folder
from resnet.rundir.status import status_or_nothing
from slurm.allocation import Allocation, expand
from slurm.held import OwnStep, is_supervised, is_there, this_process


class Given:
    """What was given of an allocation, while nobody else gives of it."""

    def __init__(self, allocation: Allocation, notes: list[dict[str, Any]]) -> None:
        self._job, self.notes = f"{allocation.number} of {allocation.submitted}", notes

    def taken(self, steps: Sequence[OwnStep]) -> set[str]:
        """Nodes on which runs train, or are to. steps: those of all runs in the allocation."""
        runs = {step.run for step in steps}
        self.notes[:] = [note for note in self.notes if _is_in_use(note, runs if note["job"] == self._job else None)]
        noted = {node for note in self.notes if note["job"] == self._job for node in note["nodes"]}
        # Also of a run that was started where its note is not seen.
        return noted | {node for step in steps if step.trains for node in expand(step.nodes)}

    def give(self, nodes: Iterable[str]) -> str:
        """Write down that they are this process's, for a run; returns what the note is known by."""
        note = uuid.uuid4().hex
        self.notes.append({"note": note, "job": self._job, "nodes": [*nodes], "by": this_process()})
        return note

    def name(self, note: str, run_dir: Path, steps: str) -> None:
        """Write down whose they are. steps: what the names of the run's steps begin with."""
        before = [one for one in self.notes if one.get("run") == str(run_dir)]
        self.notes[:] = [one for one in self.notes if one not in before]
        for one in self.notes:
            if one["note"] == note:
                one |= {"run": str(run_dir), "steps": steps}


def _is_in_use(note: dict[str, Any], runs: set[str] | None) -> bool:
    """runs: those that have steps in the allocation; None where that is not known."""
    if (run := note.get("run")) is None:
        return is_there(note["by"])
    if status_or_nothing(Path(run)).get("state") not in ("queued", "running"):
        return False
    return runs is None or note["steps"] in runs or is_there(note["by"]) or is_supervised(Path(run))


@contextlib.contextmanager
def giving(allocation: Allocation) -> Iterator[Given]:
    """What was given of an allocation, to give more of it. Where the home directory takes no file, nothing is known."""
    file = state_folder() / "given.json"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            fcntl.lockf(stack.enter_context(open(file.with_suffix(".lock"), "a")), fcntl.LOCK_EX)
        given = Given(allocation, _read(file))
        yield given
        with contextlib.suppress(OSError):
            write_atomic(file, json.dumps(given.notes))


def _read(file: Path) -> list[dict[str, Any]]:
    with contextlib.suppress(OSError, ValueError):
        notes = json.loads(file.read_text(encoding="utf-8"))
        # It is of all versions of the program.
        return [note for note in notes if _is_note(note)] if isinstance(notes, list) else []
    return []


def _is_note(note: object) -> bool:
    needed = {"note": str, "job": str, "nodes": list, "by": dict}
    if isinstance(note, dict) and "run" in note:
        needed |= {"run": str, "steps": str}
    return isinstance(note, dict) and all(isinstance(note.get(key), kind) for key, kind in needed.items())
