"""Where the ranks of a run leave their logs: all in the run directory, or only the first, the others on their nodes.

A thousand ranks that open files in one directory of a shared file system are a load that nobody reads.
"""

from __future__ import annotations

import hashlib
import os
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


def on_node(run_dir: Path, attempt: int | str, name: str) -> Path:
    """Where a rank keeps, on its own node, a file of an attempt that does not belong in the run directory (yet)."""
    run = hashlib.sha256(os.fsencode(os.path.abspath(run_dir))).hexdigest()[:12]
    return LOCAL / f"resnet-{os.getuid()}-{run}-{attempt}-{name}"


def output_name(rank: int | str) -> str:
    """Name on the node of what a rank prints; rank: or srun's word for it."""
    return f"out-{rank}.log"
