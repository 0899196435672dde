"""The training program. Knows torch and recipes; nothing of Slurm or sweeps."""
