"""What launchers tell the ranks they start, in variables of their environment."""

from __future__ import annotations

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torch.distributed reads to find the other ranks."""
ATTEMPT = "RESNET_ATTEMPT"
"""The number of the attempt, which the batch script of a job tells its ranks, and nobody else has."""


def is_launchers(name: str) -> bool:
    """Whether a variable is one that a launcher (torchrun, accelerate) sets for its ranks, and for nobody else."""
    return name in RANK_VARIABLES or name.startswith(("ACCELERATE_", "TORCHELASTIC_"))
