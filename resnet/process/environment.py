"""What launchers tell the ranks they start, in variables of their environment."""

from __future__ import annotations

import os
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[2]
"""Folder that holds train.py and the packages."""
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torch.distributed reads to find the other ranks."""
ATTEMPT = "RESNET_ATTEMPT"
"""The number of the attempt, which the batch script of a job tells its ranks, and nobody else has."""


def is_under_accelerate() -> bool:
    """Whether `accelerate launch` started this process."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ


def job_id() -> str | None:
    """This job's id as squeue and scontrol name it ("12", or "12_3" in an array); None outside of Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def is_this_job(other: str | None) -> bool:
    """Whether an id, as `job_id` gave it, is this job's; version 0.1.0 noted an array task by its own plain number."""
    return other is not None and other in (job_id(), os.environ.get("SLURM_JOB_ID"))


def is_launchers(name: str) -> bool:
    """Whether a variable is one that a launcher (torchrun, accelerate) sets for its ranks, and for nobody else."""
    return name in RANK_VARIABLES or name.startswith(("ACCELERATE_", "TORCHELASTIC_"))


def threads_asked() -> int | None:
    """Threads that the user wants (OMP_NUM_THREADS); None: not told, as where a launcher set it for its ranks, to 1."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if not given.isdigit() or given == "0":
        return None
    by_launcher = given == "1" and (is_under_accelerate() or "TORCHELASTIC_RUN_ID" in os.environ)
    return None if by_launcher and not _launcher_was_given("OMP_NUM_THREADS") else int(given)


def _launcher_was_given(name: str) -> bool:
    """Whether the variable was there when the process that started this one began (on Linux)."""
    try:
        return any(
            variable.startswith(f"{name}=".encode())
            for variable in Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
        )
    except OSError:
        return False


CORES = "RESNET_CORES"
"""The environment variable by which a launcher tells each rank, or each of several runs on a machine, its share."""


def usable() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes of this machine's memory that each of its ranks can take without swapping; None where nobody tells."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    return None if kilobytes is None else 1024 * kilobytes // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def cores_of_rank() -> int:
    """Cores for the threads and data workers of this rank: what the launcher gave it, else an equal share of all.

    Only the launcher knows: Slurm binds each rank to cores of its own or lets all run everywhere, by its configuration.
    """
    if given := os.environ.get(CORES):
        return max(1, min(int(given), usable()))
    return max(1, usable() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
