"""A copy of the program as it is at submission: what is edited afterwards does not change what was sent."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import uuid
from pathlib import Path

from resnet.process.environment import PROGRAM

PACKAGES = ("recipes", "resnet", "launch", "slurm")
LIMIT = 200_000_000
"""Bytes beyond which something that is not code lies in the folder."""


def snapshot_path(root: Path, program: Path = PROGRAM) -> Path:
    """Where the copy of the program as it is now would be."""
    return root / _digest(program, _files(program, root))


def take_snapshot(root: Path, program: Path = PROGRAM) -> Path:
    """Copy the program's files into a folder below `root` that is named by their content, and return it.

    What is tracked by git and what git does not ignore is copied; where git knows nothing (an installed program), the
    packages are. Raises ValueError where that is more than `LIMIT` bytes.
    """
    files = _files(program, root)
    if (size := sum(file.stat().st_size for file in files if not file.is_symlink())) > LIMIT:
        largest = max((file for file in files if not file.is_symlink()), key=lambda file: file.stat().st_size)
        raise ValueError(
            f"{program} holds {size / 1e6:.0f} MB of files that git does not ignore, which a job's copy of the code "
            f"would hold too; the largest is {largest.relative_to(program)}: list it in .gitignore"
        )
    name = _digest(program, files)
    place = root / name
    if place.is_dir():
        if all(os.path.lexists(place / file.relative_to(program)) for file in files):
            # One that is about to be used is not old, to `launch clean`.
            with contextlib.suppress(OSError):
                os.utime(place)
            return place
        # Some file systems remove what is old.
        shutil.rmtree(place, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    temporary = root / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        for file in files:
            copy = temporary / file.relative_to(program)
            copy.parent.mkdir(parents=True, exist_ok=True)
            # With its mode, but not its age: file systems for scratch remove what is old.
            shutil.copy(file, copy, follow_symlinks=False)
        # Somebody else may have placed the same copy by now: a full folder is not replaced.
        with contextlib.suppress(OSError):
            temporary.rename(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if not place.is_dir():
        raise OSError(f"the copy of the code could not be made in {root}")
    return place


def _files(program: Path, root: Path) -> list[Path]:
    command = [
        "git",
        "--no-optional-locks",
        "-C",
        str(program),
        "ls-files",
        "-z",
        "-co",
        "--exclude-standard",
        "--",
        ".",
    ]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
        listed = done.stdout.decode(errors="surrogateescape").split("\0") if done.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired):
        listed = []
    files = [program / name for name in listed if name]
    if program / "train.py" not in files:
        files = [program / "train.py"]
        for package in PACKAGES:
            files += (file for file in (program / package).rglob("*") if "__pycache__" not in file.parts)
    # Tracked files may be gone, submodules are folders, and the runs may lie in the program's own folder.
    runs = root if root.parent == program else root.parent
    inside = runs.is_relative_to(program)
    there = {file for file in files if file.is_file() or file.is_symlink()}
    return sorted(file for file in there if not (inside and file.is_relative_to(runs)))


def _digest(program: Path, files: list[Path]) -> str:
    content = hashlib.sha256()
    for file in files:
        data = os.fsencode(os.readlink(file)) if file.is_symlink() else file.read_bytes()
        content.update(os.fsencode(file.relative_to(program)) + b"\0" + hashlib.sha256(data).digest())
    return content.hexdigest()[:16]
