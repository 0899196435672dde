"""Where the ranks of a run leave their logs: all in the run directory, or only the first, the others on their nodes.

A thousand ranks that open files in one directory of a shared file system are a load that nobody reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path

RANK_LOGS = "RESNET_RANK_LOGS"
"""Whose logs are kept in the run directory, first or all, which the batch script of a job tells its ranks."""
MANY = 16
"""Ranks up to which all keep their logs there where no job says."""
LOCAL = Path("/tmp")
"""On every node, and its own."""


def all_are_kept(ranks: int) -> bool:
    """Whether every one of so many ranks writes to the run directory, not only the first."""
    told = os.environ.get(RANK_LOGS)
    return ranks <= MANY if told is None else told == "all"


def node_folder(run_dir: Path, attempt: int | str) -> Path:
    """Where the ranks of an attempt keep, on their own node, what does not belong in the run directory (yet)."""
    run = hashlib.sha256(os.fsencode(os.path.abspath(run_dir))).hexdigest()[:12]
    return LOCAL / f"resnet-{os.getuid()}-{run}-{attempt}"


def make_node_folder(run_dir: Path, attempt: int | str) -> None:
    """Make it, for nobody else to enter. Raises OSError where there is one that is somebody else's."""
    folder = node_folder(run_dir, attempt)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not this user's own folder")


def on_node(run_dir: Path, attempt: int | str, name: str) -> Path:
    """A file in that folder."""
    return node_folder(run_dir, attempt) / name


def output_name(rank: int | str) -> str:
    """Name on the node of what a rank prints."""
    return f"out-{rank}.log"
