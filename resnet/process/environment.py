"""What launchers tell the ranks they start, in variables of their environment."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[2]
"""Folder that holds train.py and the packages."""
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torch.distributed reads to find the other ranks."""
ATTEMPT = "RESNET_ATTEMPT"
"""The number of the attempt, which the batch script of a job tells its ranks, and nobody else has."""
SCRIPT = "RESNET_SCRIPT"
"""That script's process, when it began, and the run directory, by which a rank sees that it was killed."""
REHEARSAL = "RESNET_REHEARSAL"
"""In a rehearsal the number of steps after which each rank saves and stops."""
REHEARSED = "rehearsed"
"""Why a run has stopped that did."""

RANKS = "RESNET_RANKS"
"""How many ranks the batch script of a job starts, where that is not as many as the job was sent for."""

MICRO_BATCH = "RESNET_MICRO_BATCH"
"""The micro-batch of a run whose job may be given several numbers of nodes, told by its batch script."""


def micro_batch_told() -> int | None:
    return int(os.environ.get(MICRO_BATCH) or 0) or None


CLUSTER = "RESNET_CLUSTER"
"""The name by which a run that waits on several clusters tells them apart, which may call themselves the same."""


def is_under_accelerate() -> bool:
    """Whether `accelerate launch` started this process."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ


def node_name() -> str:
    """This machine's name: Slurm's own for it, which it is told by, where Slurm started this process."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def job_id() -> str | None:
    """This job's id as squeue and scontrol name it ("12", or "12_3" in an array); None outside of Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def cluster_name() -> str | None:
    """The cluster of this job, over which ids repeat; None outside of Slurm."""
    return os.environ.get(CLUSTER) or os.environ.get("SLURM_CLUSTER_NAME")


def is_this_job(other: str | None, cluster: str | None = None) -> bool:
    """Whether an id, as `job_id` gave it, is this job's; version 0.1.0 noted an array task by its own plain number.

    cluster: as `cluster_name` gave it; None: not noted, as by version 0.2.0.
    """
    same_cluster = cluster is None or cluster_name() in (None, cluster)
    return other is not None and same_cluster and other in (job_id(), os.environ.get("SLURM_JOB_ID"))


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


def machine_memory(system: Path = Path("/")) -> int | None:
    """Bytes of this machine's memory that the run can take without swapping, within the limits of its control groups
    (of a Slurm job, a container); None where nobody tells.

    system: where /proc and /sys are.
    """
    free = [*_left_by_control_groups(system)]
    with contextlib.suppress(OSError):
        lines = (system / "proc/meminfo").read_text().splitlines()
        free += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return min(free, default=None)


def available_memory() -> int | None:
    """What each of this machine's ranks can take of that."""
    free = machine_memory()
    return None if free is None else free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _left_by_control_groups(system: Path) -> Iterator[int]:
    """Bytes that each control group above this process, of version 1 or 2, lets it take."""
    with contextlib.suppress(OSError):
        for line in (system / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:
                root, limit, used = system / "sys/fs/cgroup", "memory.max", "memory.current"
            elif "memory" in controllers.split(","):
                root, limit, used = system / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            else:
                continue
            folder = root / group.strip("/")
            while folder.is_relative_to(root):
                # A group without a limit says "max" (version 2), the topmost has no such file.
                with contextlib.suppress(OSError, ValueError):
                    yield max(0, _number(folder / limit) - _number(folder / used) + _cached_files(folder))
                folder = folder.parent


def _number(file: Path) -> int:
    return int(file.read_text())


def _cached_files(folder: Path) -> int:
    """Bytes of a control group that the kernel gives back when they are needed."""
    lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return sum(int(size) for name, size in lines if name in ("inactive_file", "active_file"))


def cores_of_rank() -> int:
    """Cores for the threads and data workers of this rank: what the launcher gave it, else an equal share of all.

    Only the launcher knows: Slurm binds each rank to cores of its own or lets all run everywhere, by its configuration.
    """
    if given := os.environ.get(CORES):
        return max(1, min(int(given), usable()))
    return max(1, usable() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
