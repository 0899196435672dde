"""How many CPU cores a rank may use."""

from __future__ import annotations

import os

CORES = "RESNET_CORES"
"""The environment variable by which a launcher tells each rank, or each of several runs on a machine, its share."""


def usable() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_of_rank() -> int:
    """Cores for the threads and data workers of this rank: what the launcher gave it, else an equal share of all.

    Only the launcher knows: Slurm binds each rank to cores of its own or lets all run everywhere, by its configuration.
    """
    if given := os.environ.get(CORES):
        return max(1, min(int(given), usable()))
    return max(1, usable() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
