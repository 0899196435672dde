"""An artefact: a folder with what a network became and artefact.json, which says of what, how and at what cost.

The folder appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from recipes.schema.channels import COLOURS
from recipes.text import listed
from resnet.process.processes import is_alive
from resnet.process.version import VERSION
from resnet.rundir.artefacts import EXPORTS, FORMAT, NAME
from resnet.rundir.files import read_json, sync_folder, to_json, write_atomic
from resnet.tools.export.public import public_recipe, public_weights, public_words
from resnet.tools.export.served import threads
from resnet.tools.trained import Trained
from resnet.weights_file import PREPARED

_OF_A_RUN = ("status.json", "provenance.json")
"""Files that no artefact has, and each run."""
_OLD = ".old"
"""Ending of the name that an artefact has while another one takes its place."""


def place_of(trained: Trained, name: str, out: Path | None) -> Path:
    """Where an artefact is to be. Raises ValueError where nothing says it, or it would take something's place."""
    if out is None and trained.run_dir is None:
        raise ValueError(f"{trained.weights} is in no run: say where the result is to be, by --out FOLDER")
    if out is None and trained.run_dir is not None and trained.weights.is_relative_to(trained.run_dir / EXPORTS):
        raise ValueError(f"{trained.weights} is an artefact of the run: say where one of it is to be, by --out FOLDER")
    place = out or trained.run_dir / EXPORTS / name  # pyright: ignore[reportOptionalOperand]
    above = next((folder for folder in place.absolute().parents if os.path.lexists(folder)), place)
    if not above.is_dir():
        raise ValueError(f"{place} cannot be made: {above} is no folder")
    _check_replaceable(place)
    if Path(os.path.realpath(place)) in Path(os.path.realpath(trained.weights)).parents:
        raise ValueError(f"{place} would be replaced, and holds {trained.weights}: give another --out")
    return place


def _check_replaceable(place: Path) -> None:
    """Raise ValueError where there is something that is no artefact, or more than one."""
    if not os.path.lexists(place):
        return
    if not (place / NAME).is_file():
        raise ValueError(f"{place} is there and holds no {NAME}: give another --out")
    record = read_json(place / NAME)
    # The record of a run that was pruned names all of its files, too.
    if record.get("kind") == "prune" or any((place / name).exists() for name in _OF_A_RUN):
        raise ValueError(f"{place} is a run, which is not replaced: give another --out")
    named = record.get("files")
    if not isinstance(named, dict):
        raise ValueError(f"{place / NAME} does not say which files the artefact consists of: give another --out")
    there = {str(file.relative_to(place)) for file in place.rglob("*") if file.is_symlink() or not file.is_dir()}
    if others := sorted(there - {NAME, *named}):
        raise ValueError(f"{place} would be replaced, and holds {listed(others)} beside what {NAME} names: remove it")


def refuse_taken(place: Path) -> None:
    """Raise ValueError where there is something that is not to be replaced."""
    if os.path.lexists(place):
        raise ValueError(f"{place} is there: choose another --name")


@contextlib.contextmanager
def new_artefact(place: Path, replaces: bool = True) -> Iterator[Path]:
    """A folder to fill, which takes the place of an artefact at the end; nothing is left of a failure.

    replaces: False: nothing is replaced. Raises ValueError at the end where there is by then what is not to be
    replaced, and leaves that as it is.
    """
    given, place = place, Path(os.path.realpath(place))
    made = [folder for folder in place.parents if not folder.exists()]
    folder = _new_folder(place, given)
    try:
        if not replaces:
            refuse_taken(place)
        yield folder
        for file in folder.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        if replaces:
            _take_place(folder, place)
        else:
            _take_free_place(folder, place)
        sync_folder(place.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for empty in made:
            # Of one that failed.
            with contextlib.suppress(OSError):
                empty.rmdir()


def _new_folder(place: Path, given: Path) -> Path:
    """An empty folder beside a place. given: what the user calls the place."""
    # Containers of one host name have the same process numbers.
    folder = place.with_name(f"{_start_of(place)}{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(place)
        folder.mkdir()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(given)) from error
    return folder


def _start_of(place: Path) -> str:
    """What the names of the folders begin with that this machine's processes make for a place."""
    return f".{place.name}.{os.uname().nodename}-"


def _take_place(folder: Path, place: Path) -> None:
    old = folder.with_suffix(_OLD)
    while True:
        _check_replaceable(place)
        try:
            with contextlib.suppress(FileNotFoundError):
                place.rename(old)
            folder.rename(place)
            break
        except BaseException as error:
            with contextlib.suppress(OSError):
                # It fails where another one has come there in between.
                old.rename(place)
            if not isinstance(error, OSError) or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _take_free_place(folder: Path, place: Path) -> None:
    try:
        # It fails where there is anything but an empty folder.
        folder.rename(place)
    except OSError:
        refuse_taken(place)
        raise


def _remove_abandoned(place: Path) -> None:
    """Remove what was left where an earlier one was killed on this machine; what it had put aside is put back."""
    start = _start_of(place)
    for path in place.parent.glob(f"{glob.escape(start)}*"):
        pid = path.name.removeprefix(start).partition(".")[0]
        # One of this process's own number was another's, as in a container that was started again.
        if pid.isdecimal() and (int(pid) == os.getpid() or not is_alive(int(pid))):
            if path.suffix == _OLD and not os.path.lexists(place):
                path.rename(place)
            shutil.rmtree(path, ignore_errors=True)


def write_record(folder: Path, trained: Trained, kind: str, classes: list[str], **more: Any) -> None:
    """Write artefact.json, the last of the folder's files.

    It may be shown to anybody: nothing in it says where files of this machine are.
    kind: export, quantize or prune. more: what else is to be kept, as JSON takes it.
    """
    files = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    augment = trained.recipe.augment
    size, channels = augment.val_size, augment.channels
    colours = COLOURS.get(channels, f"of {channels} bands")
    content = {
        "format": FORMAT,
        "kind": kind,
        "run": trained.run_dir.absolute().name if trained.run_dir else None,
        "weights": public_weights(trained),
        "files": files,
        "input": {
            "shape": ["N", channels, size, size],
            "what": f"float32 {colours}, scaled to 0..1, less mean, by std",
            **{key: getattr(augment, key) for key in PREPARED},
        },
        "output": {"shape": ["N", len(classes)], "what": f"logits, for a {_link(trained)}"},
        "classes": classes,
        "recipe": public_recipe(trained.recipe),
        "command": shlex.join(["resnet", *public_words(sys.argv[1:])]),
        "version": VERSION,
        "torch": torch.__version__,
        "threads": threads(),
        "machine": machine(),
        "made": time.time(),
        **more,
    }
    write_atomic(folder / NAME, to_json(content, indent=1))


def _link(trained: Trained) -> str:
    return "sigmoid each" if trained.recipe.loss == "bce" else "softmax"


def machine() -> str:
    """The processor that the figures were measured on."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return os.uname().machine
