"""What each attempt of a run was made of, and how it ended: provenance.json."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet.process.environment import ATTEMPT, PROGRAM, job_id
from resnet.process.version import VERSION
from resnet.rundir.attempts import newest_step
from resnet.rundir.files import read_json, to_json, write_atomic
from resnet.rundir.status import read_status

PACKAGES = (
    *("torch", "torchvision", "accelerate", "datasets", "numpy", "pillow", "pydantic", "pyyaml", "safetensors"),
    *("submitit", "wandb", "matplotlib", "torchcodec", "nvidia-nvimgcodec-cu12"),
)
DIFF_LIMIT = 1_000_000
"""Characters of `git diff` that are kept."""


def read_provenance(run_dir: Path) -> dict[str, Any]:
    """The content of provenance.json; empty where there is none. Raises ValueError where it is damaged."""
    return read_json(run_dir / "provenance.json")


def kept_plan(run_dir: Path) -> dict[str, Any]:
    """What followed from the recipe for the steps that a run's checkpoints hold, and is kept when it goes on: its
    `batch_size` and `micro_batch` among it. Empty where nothing is saved, or tells."""
    with contextlib.suppress(ValueError, OSError):
        plan = read_provenance(run_dir).get("plan")
        if isinstance(plan, dict) and {"batch_size", "micro_batch"} <= plan.keys() and newest_step(run_dir) > 0:
            return plan
    return {}


def provenance(
    argv: Sequence[str],
    devices: Iterable[str] = (),
    world_size: int = 1,
    plan: Mapping[str, Any] | None = None,
    folder: Path = PROGRAM,
) -> dict[str, Any]:
    """What an attempt of a run is made of. The environment's variables are not in it: they hold keys and passwords.

    argv: the command line, program first.
    devices: names of the devices, one a rank.
    plan: what was derived from the recipe (steps per epoch, micro-batch ...), to be shown in the report.
    folder: the program's folder; its git commit and uncommitted changes are noted if git tracks it.
    """
    return {
        "command": shlex.join(argv),
        "folder": os.getcwd(),
        "git": _git(folder),
        "version": VERSION,
        "packages": _packages(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "job_id": job_id(),
        "world_size": world_size,
        "devices": list(devices),
        "plan": dict(plan or {}),
    }


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _git(folder: Path) -> dict[str, Any] | None:
    """Commit and uncommitted changes of a folder, or None where git does not track its files (as in site-packages)."""
    if not _run_git(folder, "ls-files", "--", "."):
        return None
    commit = _run_git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    diff = _run_git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--", ".") or ""
    return {"sha": commit.strip(), "changed": bool(diff), "diff": diff[:DIFF_LIMIT], "cut": len(diff) > DIFF_LIMIT}


def _run_git(folder: Path, *arguments: str) -> str | None:
    # Without optional locks, git leaves the index of a checkout that others use as it is.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=20, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def record_attempt(run_dir: Path, information: Mapping[str, Any], step: int = 0) -> int:
    """Begin an attempt in provenance.json and return its number, counted from 1.

    information: of `provenance`; it replaces that of the attempt before, of which commit, host and devices stay listed.
    step: the step the attempt starts from.
    """
    attempts = read_provenance(run_dir).get("attempts", [])
    if attempts and attempts[-1]["end"] is None:
        status = read_status(run_dir)
        reached = max(attempts[-1]["step"], status.get("step") or 0)
        attempts[-1] |= {"end": status.get("updated"), "reason": "killed", "step": reached}
    git = information.get("git") or {}
    attempt = {key: information.get(key) for key in ("command", "host", "job_id", "world_size", "devices", "changed")}
    attempt |= {"git_sha": git.get("sha"), "git_changed": git.get("changed")}
    # Under Slurm attempts count that died before they came here.
    number = max(len(attempts) + 1, int(os.environ.get(ATTEMPT, "0")))
    attempt |= {"start": time.time(), "end": None, "reason": None, "first_step": step, "step": step, "attempt": number}
    attempts.append(attempt)
    write_atomic(run_dir / "provenance.json", to_json({**information, "attempts": attempts}, indent=1) + "\n")
    return number


def end_attempt(run_dir: Path, reason: str, step: int | None = None) -> None:
    """Note when, why (finished, stopped, failed: ...) and after which step the newest attempt ended."""
    content = read_provenance(run_dir)
    attempt = content["attempts"][-1]
    attempt |= {"end": time.time(), "reason": reason, "step": attempt["step"] if step is None else step}
    write_atomic(run_dir / "provenance.json", to_json(content, indent=1) + "\n")


def environment_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What of the program, its libraries and the machine can change a run's numbers; of provenance.json."""
    if not provenance:
        return {}
    git = provenance.get("git") or {}
    commit = f"{git['sha'][:10]}{' with changes' if git.get('changed') else ''}" if git.get("sha") else None
    devices = provenance.get("devices") or []
    facts = {"version": provenance.get("version"), "commit": commit, "python": provenance.get("python")}
    facts |= {"host": provenance.get("host"), "platform": provenance.get("platform")}
    facts |= {"device": ", ".join(dict.fromkeys(devices)), "ranks": provenance.get("world_size")}
    facts |= {"threads": provenance.get("threads"), **provenance.get("packages", {})}
    return facts | {name: provenance.get("plan", {}).get(name) for name in ("micro_batch", "precision")}


def environment_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two provenance.json, as far as both say it."""
    first, second = environment_of(one), environment_of(other)
    told = [key for key in first if None not in (first[key], second.get(key))]
    return {key: (first[key], second[key]) for key in told if first[key] != second[key]}
