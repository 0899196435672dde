"""What a measurement was made on, and by what."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torchvision", "accelerate", "timm", "lightning", "numpy")


def facts() -> dict[str, Any]:
    """Processor, cores, GPU, versions, the program's commit and the command, for the head of a report."""
    return {
        "command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain") else ""),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def headline(found: dict[str, Any]) -> str:
    """The facts in two lines."""
    packages = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{found['command']}\n{found['gpu'] or found['processor']}, {found['usable_cores']} of {found['cores']} cores, "
        f"load {found['load']} at the start; Python {found['python']}, {packages}; {found['commit']}, {found['time']}"
    )


def versions() -> dict[str, str]:
    # torch's own says which CUDA it was built for.
    found = {"torch": torch.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec else sys.argv[0]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.processor())


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
