"""Where runs are: by name or path, and places for new ones."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from recipes.text import did_you_mean, near
from resnet.rundir.artefacts import is_export
from resnet.rundir.files import write_atomic

ROOT = "runs"
"""Folder of the runs where no other is named."""
SWEEP_FILE = "sweep.json"
"""In a folder of runs that are the trials of a sweep."""
_MOST_ROOTS = 50
_MOST_NAMED = 5


def remember_root(root: Path) -> None:
    """Note a folder that runs were sent to, so that they are found without its name from this machine on."""
    known = [line for line in _remembered() if line != str(root)]
    with contextlib.suppress(OSError):
        _roots_file().parent.mkdir(parents=True, exist_ok=True)
        write_atomic(_roots_file(), "".join(f"{line}\n" for line in [*known, str(root)][-_MOST_ROOTS:]))


def roots(root: str | Path = ROOT) -> list[Path]:
    """The folders to look for runs in: the one that was named, or else ./runs and those that runs were sent to."""
    named = [Path(root).expanduser()]
    if str(root) != ROOT:
        return named
    return distinct([*named, *(Path(line) for line in _remembered() if os.path.isdir(line))])


def distinct(folders: Iterable[Path]) -> list[Path]:
    """Folders in their order, each by the first of its names: ./runs is often a link to where runs are sent."""
    found: dict[str, Path] = {}
    for folder in folders:
        found.setdefault(os.path.realpath(folder), folder)
    return [*found.values()]


def state_folder() -> Path:
    """Of what a user's commands remember on all machines that share the home directory."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "resnet-launch"


def _roots_file() -> Path:
    return state_folder() / "roots"


def _remembered() -> list[str]:
    try:
        return _roots_file().read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []


def find_run(text: str, root: str | Path = ROOT) -> Path:
    """The run directory that a path, or a name in one of `roots(root)`, stands for.

    Raises ValueError with the names that are near.
    """
    for path in places(text, root):
        if is_run(path):
            return path
    if any(is_sweep(path) for path in places(text, root)):
        raise ValueError(f"{text} is a sweep: give a trial, {text}/TRIAL (`launch status {text}` lists them)")
    if is_export(Path(text).expanduser()):
        raise ValueError(f"{text} is no run directory: it is an export of one, whose weights can be given as a file")
    if Path(text).expanduser().is_dir():
        raise ValueError(f"{text} is no run directory: it holds no recipe.yaml")
    files = sorted((path for folder in roots(root) for path in folder.glob("*/recipe.yaml")), key=os.path.getmtime)
    names = list(dict.fromkeys(path.parent.name for path in files))
    if close := near(text, names):
        raise ValueError(f"no run {text!r} in {root}: {did_you_mean(close)}")
    newest = ", ".join(reversed(names[-_MOST_NAMED:])) if names else "none"
    more = f" and {len(names) - _MOST_NAMED} older ones" if len(names) > _MOST_NAMED else ""
    raise ValueError(f"no run {text!r}: give a path to a run directory or a name in {root} (there are: {newest}{more})")


def is_run(folder: Path) -> bool:
    """Whether a folder is a run directory that has its recipe."""
    return os.path.isfile(folder / "recipe.yaml") and not is_export(folder)


def is_sweep(folder: Path) -> bool:
    return (folder / SWEEP_FILE).is_file()


def find_sweep(text: str, root: str | Path = ROOT) -> Path | None:
    """The absolute directory of a sweep by name or path; None where that is no sweep."""
    return next((path.absolute() for path in places(text, root) if is_sweep(path)), None)


def places(text: str, root: str | Path = ROOT) -> list[Path]:
    """Where a run or a sweep may be: at the path, or by that name in one of `roots(root)`."""
    return [Path(text).expanduser(), *(folder / text for folder in roots(root))]


def runs_in(folder: Path) -> list[Path]:
    """The directories in a folder that hold something of a run, in no order. Raises OSError."""
    with os.scandir(folder) as entries:
        paths = [Path(entry.path) for entry in entries if not entry.name.startswith(".")]
    return [path for path in paths if os.path.isfile(f"{path}/status.json") or is_run(path)]


def sweeps_in(folder: Path) -> list[Path]:
    """The directories of sweeps in a folder, by name. Raises OSError."""
    with os.scandir(folder) as entries:
        paths = [entry.path for entry in entries if not entry.name.startswith(".")]
    return sorted(Path(path) for path in paths if os.path.isfile(f"{path}/{SWEEP_FILE}"))


def new_run_dir(root: Path, recipe_name: str) -> Path:
    """A path under `root`, made of recipe and time, that nothing has yet."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    candidates = (root / f"{recipe_name}-{stamp}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(path for path in candidates if not path.exists())


def run_names(root: str | Path = ROOT) -> list[str]:
    """Names of the runs and sweeps in `roots(root)`."""
    files = ("recipe.yaml", "status.json", SWEEP_FILE)
    return sorted({path.parent.name for folder in roots(root) for file in files for path in folder.glob(f"*/{file}")})
