"""An artefact: a folder with what a network became and artefact.json, which says of what, how and at what cost.

The folder appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from recipes.text import listed, plural
from resnet.process.processes import is_alive
from resnet.process.version import VERSION
from resnet.rundir.artefacts import EXPORTS, FORMAT, NAME
from resnet.rundir.files import read_json, sync_folder, to_json, write_atomic
from resnet.tools.export.public import public_recipe, public_weights, public_words
from resnet.tools.trained import Trained
from resnet.weights_file import PREPARED


def place_of(trained: Trained, name: str, out: Path | None) -> Path:
    """Where an artefact is to be. Raises ValueError where nothing says it, or it would take something's place."""
    if out is None and trained.run_dir is None:
        raise ValueError(f"{trained.weights} is in no run: say where the result is to be, by --out FOLDER")
    place = out or trained.run_dir / EXPORTS / name  # pyright: ignore[reportOptionalOperand]
    if place.exists() and not (place / NAME).is_file():
        raise ValueError(f"{place} is there and holds no {NAME}: give another --out")
    if others := _others(place):
        raise ValueError(f"{place} would be replaced, and holds {listed(others)} beside what {NAME} names: remove it")
    return place


def _others(place: Path) -> list[str]:
    """Files in an artefact's folder that came there later."""
    there = {str(file.relative_to(place)) for file in place.rglob("*") if not file.is_dir()}
    return sorted(there - {NAME} - {*read_json(place / NAME).get("files", ())})


def refuse_taken(place: Path) -> None:
    """Raise ValueError where there is something that is not to be replaced."""
    if os.path.lexists(place):
        raise ValueError(f"{place} is there: choose another --name")


@contextlib.contextmanager
def new_artefact(place: Path, replaces: bool = True) -> Iterator[Path]:
    """A folder to fill, which takes the place of an artefact at the end; nothing is left of a failure.

    replaces: False: raise ValueError at the end where something is there by then, and leave that as it is.
    """
    place = Path(os.path.abspath(place))
    made = [folder for folder in place.parents if not folder.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(place)
    mine = f"{os.uname().nodename}-{os.getpid()}"
    folder, old = (place.with_name(f".{place.name}.{mine}.{end}") for end in ("tmp", "old"))
    try:
        folder.mkdir()
        yield folder
        for file in folder.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        if replaces:
            _take_place(folder, place, old)
        else:
            _take_free_place(folder, place)
        sync_folder(place.parent)
    finally:
        for left in (folder, old):
            shutil.rmtree(left, ignore_errors=True)
        for empty in made:
            # Of one that failed.
            with contextlib.suppress(OSError):
                empty.rmdir()


def _take_place(folder: Path, place: Path, old: Path) -> None:
    while True:
        with contextlib.suppress(FileNotFoundError):
            place.rename(old)
        try:
            folder.rename(place)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Another one has come there in between.
            shutil.rmtree(old, ignore_errors=True)


def _take_free_place(folder: Path, place: Path) -> None:
    try:
        # It fails where there is anything but an empty folder.
        folder.rename(place)
    except OSError:
        refuse_taken(place)
        raise


def _remove_abandoned(place: Path) -> None:
    """Remove what was left where an earlier one was killed on this machine."""
    start = f".{place.name}.{os.uname().nodename}-"
    for path in place.parent.glob(f"{start}*"):
        pid = path.name.removeprefix(start).partition(".")[0]
        if pid.isdigit() and not is_alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def write_record(folder: Path, trained: Trained, kind: str, classes: list[str], **more: Any) -> None:
    """Write artefact.json, the last of the folder's files.

    It may be shown to anybody: nothing in it says where files of this machine are.
    kind: export, quantize or prune. more: what else is to be kept, as JSON takes it.
    """
    files = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    augment = trained.recipe.augment
    size = augment.val_size
    content = {
        "format": FORMAT,
        "kind": kind,
        "run": trained.run_dir.absolute().name if trained.run_dir else None,
        "weights": public_weights(trained),
        "files": files,
        "input": {
            "shape": ["N", 3, size, size],
            "what": "float32 RGB, scaled to 0..1, less mean, by std",
            **{key: getattr(augment, key) for key in PREPARED},
        },
        "output": {"shape": ["N", len(classes)], "what": f"logits, for a {_link(trained)}"},
        "classes": classes,
        "recipe": public_recipe(trained.recipe),
        "command": shlex.join(["resnet", *public_words(sys.argv[1:])]),
        "version": VERSION,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
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


def class_names_of(trained: Trained, outputs: int, classes: list[str]) -> list[str]:
    """The names of a network's classes. Raises ValueError where they are not as many as its outputs."""
    names = trained.classes or classes
    if len(names) != outputs:
        raise ValueError(f"{trained.weights} is for {plural(outputs, 'class')}, and {len(names)} are named")
    return names
