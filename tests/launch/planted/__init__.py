"""Faults that are planted in runs, and what `launch why` has to say of them: a fault is one function in a table.

    @fault("failed", "oom")
    def gpu_memory(place: Place) -> Path:
        '''A rank's GPU is too small.'''
        ...

makes a run with the fault as really as is cheap, and returns its directory (or a sweep's). `failed` and `oom` are the
kind and the name of the cause that has to come first; of names with `|` between them each is right. There is a module
of the package for each kind; `faults()` gives them all.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from resnet.data.sources.shapes import draw
from tests.helpers import PROGRAM, TINY
from tests.slurm_helpers import Cluster, need_slurm, running_cluster

MODULES = ("waiting", "failed")
"""Of this package."""


class Fault(NamedTuple):
    kind: str
    names: tuple[str, ...]
    what: str
    """The fault, in a line."""
    make: Callable[[Place], Path]

    @property
    def id(self) -> str:
        return self.make.__name__


class Said(NamedTuple):
    """What `launch why` said of a planted fault."""

    right: bool
    causes: list[dict[str, Any]]

    @property
    def first(self) -> dict[str, Any]:
        return self.causes[0] if self.causes else {"kind": "", "name": "nothing", "said": "nothing is wrong"}


FAULTS: list[Fault] = []


def fault(kind: str, names: str) -> Callable[[Callable[[Place], Path]], Callable[[Place], Path]]:
    """Put a maker of a fault into the table."""

    def note(make: Callable[[Place], Path]) -> Callable[[Place], Path]:
        FAULTS.append(Fault(kind, tuple(names.split("|")), (make.__doc__ or "").strip().partition("\n")[0], make))
        return make

    return note


def faults() -> list[Fault]:
    """All, by kind."""
    for name in MODULES:
        import_module(f"tests.launch.planted.{name}")
    return sorted(FAULTS, key=lambda one: MODULES.index(one.make.__module__.rpartition(".")[2]))


class Place:
    """Where faults are planted: a folder for each, images, and a Slurm that is started by the first that needs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._exits = contextlib.ExitStack()

    def run_dir(self, name: str) -> Path:
        """A path for a run that nothing has yet."""
        return self.folder / "runs" / name

    @cached_property
    def shapes(self) -> Path:
        draw(self.folder / "shapes", per_class=16, size=40)
        return self.folder / "shapes"

    @cached_property
    def words(self) -> list[str]:
        """Of a run of a few seconds."""
        return [*TINY, f"data.train={self.shapes}"]

    def train(self, name: str, *words: object, environment: dict[str, str] | None = None, ranks: int = 1) -> Path:
        """Train here, as a process of its own, with whatever end; returns the run's directory."""
        where = [f"run.root={self.folder / 'runs'}", f"run.name={name}"]
        program = ["train.py"] if ranks == 1 else ["-m", "launch", "local", "--ranks", str(ranks)]
        command = [sys.executable, *program, *map(str, [*self.words, *words, *where])]
        run = subprocess.run(
            command, cwd=PROGRAM, env=os.environ | (environment or {}), capture_output=True, text=True, timeout=200
        )
        assert self.run_dir(name).is_dir(), run.stdout + run.stderr
        return self.run_dir(name)

    @cached_property
    def cluster(self) -> Cluster:
        """Two nodes, and an empty folder to send runs from."""
        need_slurm()
        work = self.folder / "sent"
        work.mkdir()
        return self._exits.enter_context(running_cluster(self.folder / "cluster", work, accounting=False))

    def why(self, run_dir: Path) -> list[dict[str, Any]]:
        """The causes that `launch why RUN --json` gives."""
        environment = self.cluster.environment if "cluster" in self.__dict__ else os.environ
        command = [sys.executable, "-m", "launch", "why", str(run_dir), "--json"]
        done = subprocess.run(command, cwd=PROGRAM, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["causes"]

    def say(self, planted: Fault) -> Said:
        """Plant a fault, and ask why."""
        causes = self.why(planted.make(self))
        right = bool(causes) and causes[0]["kind"] == planted.kind and causes[0]["name"] in planted.names
        return Said(right, causes)

    def close(self) -> None:
        self._exits.close()


@contextlib.contextmanager
def place_in(folder: Path) -> Iterator[Place]:
    place = Place(folder)
    try:
        yield place
    finally:
        place.close()
