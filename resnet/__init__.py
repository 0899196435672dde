"""The training program. Knows torch and recipes; nothing of Slurm or sweeps."""

import os

PARENT = os.getppid()
"""Process that started this one, seen before the imports that take seconds: it may be gone after them."""
