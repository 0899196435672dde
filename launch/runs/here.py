"""Training on this machine: its GPUs, and the environment of a run that is started here."""

from __future__ import annotations

import os
import shutil
import subprocess

from resnet.process.environment import PROGRAM, is_launchers


def visible_gpus() -> int:
    """GPUs that CUDA_VISIBLE_DEVICES leaves, or nvidia-smi lists. Raises ValueError where that one hangs."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        devices = [device.strip() for device in chosen.split(",")]
        # CUDA takes those before the first one that it does not know.
        return next((i for i, device in enumerate(devices) if device in ("", "-1", "NoDevFiles")), len(devices))
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        raise ValueError("nvidia-smi -L does not answer: name the GPUs in CUDA_VISIBLE_DEVICES, as in 0,1") from None
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines()) if done.returncode == 0 else 0


def ranks_here(device: str) -> int:
    """Ranks that a training has here where nobody says how many. device: the recipe's."""
    return 1 if device == "cpu" else max(1, visible_gpus())


def own_environment() -> dict[str, str]:
    """Without what a launcher around this one, or a batch script, says of its own processes."""
    return {name: value for name, value in os.environ.items() if not is_launchers(name)}


def programs_environment() -> dict[str, str]:
    """For `python -m` of this program's modules: they are found in any folder, and before another copy in this one."""
    path = os.pathsep.join(filter(None, (str(PROGRAM), os.environ.get("PYTHONPATH"))))
    return own_environment() | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
