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
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from launch.cli import COMMANDS
from resnet.data.sources.shapes import draw
from resnet.process.commands import run_program
from slurm import testcluster
from tests.helpers import PROGRAM, TINY, train
from tests.slurm_helpers import ON_CLUSTER, Cluster, need_slurm, running_cluster

MODULES = ("waiting", "failed", "slow", "spiked", "wrong")
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
        self.variables: dict[str, str] = {}
        """More of the environment in which `launch why` is asked."""
        self._afterwards: list[Callable[[], object]] = []
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
        """Train here with whatever end; returns the run's directory.

        In this process, unless it is to have several ranks or variables of its own: it may die of them.
        """
        where = [f"run.root={self.folder / 'runs'}", f"run.name={name}"]
        words = (*self.words, *words, *where)
        if ranks == 1 and environment is None:
            train(*words)
        else:
            program = ["train.py"] if ranks == 1 else ["-m", "launch", "local", "--cpu-ranks", str(ranks)]
            command = [sys.executable, *program, *map(str, words)]
            subprocess.run(command, cwd=PROGRAM, env=os.environ | (environment or {}), capture_output=True, timeout=200)
        assert self.run_dir(name).is_dir(), words
        return self.run_dir(name)

    @cached_property
    def cluster(self) -> Cluster:
        """Two nodes, and an empty folder to send runs from."""
        need_slurm()
        work = self.folder / "sent"
        work.mkdir()
        return self._exits.enter_context(running_cluster(self.folder / "cluster", work))

    def send(self, name: str, *words: object) -> Path:
        """Send a run to Slurm, as a user does; returns its directory."""
        self.cluster.launch("submit", *self.words, *words, f"run.name={name}", *ON_CLUSTER, "slurm.gpus_per_node=0")
        return self.cluster.run_dir(name)

    def afterwards(self, undo: Callable[[], object]) -> None:
        """Call this once `launch why` was asked of the fault that is being planted."""
        self._afterwards.append(undo)

    def why(self, run_dir: Path) -> list[dict[str, Any]]:
        """The causes that `launch why RUN --json` gives."""
        sent = "cluster" in self.__dict__ and run_dir.is_relative_to(self.cluster.work)
        variables = {**(testcluster.environment(self.cluster.folder) if sent else {}), **self.variables}
        printed = io.StringIO()
        with mock.patch.dict(os.environ, variables), contextlib.redirect_stdout(printed):
            code = run_program("launch", COMMANDS, ["why", str(run_dir), "--json"], dict)
        assert code == 0
        return json.loads(printed.getvalue())["causes"]

    def say(self, planted: Fault) -> Said:
        """Plant a fault, and ask why."""
        try:
            causes = self.why(planted.make(self))
        finally:
            while self._afterwards:
                self._afterwards.pop()()
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
