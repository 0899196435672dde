"""The files of a run directory: written whole or not at all, read by the program, the launcher and people."""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import json
import math
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

PROGRAM = Path(__file__).parent.parent
PACKAGES = (
    *("torch", "torchvision", "accelerate", "datasets", "numpy", "pillow", "pydantic", "pyyaml", "safetensors"),
    *("submitit", "wandb", "matplotlib"),
)
DIFF_LIMIT = 1_000_000
"""Characters of `git diff` that are kept."""


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file so that readers, and a machine that loses power, see the old content or the new, never a part."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder (new, renamed, removed) survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: NaN and infinities become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it to go on without it") from error


def write_status(run_dir: Path, **fields: Any) -> None:
    """Update fields of status.json; the others stay.

    Fields: name, state (queued, running, finished, failed or stopped), step, total_steps, epoch, epochs, best, top1,
    loss, images_per_second, eta_s, attempts, failure, reason, last_checkpoint_time, wandb_url, pid, host, ...
    `updated` (unix time) and, where the steps are known, `percent` are filled in.
    """
    status = read_status(run_dir) | fields | {"updated": time.time()}
    if status.get("total_steps") and status.get("step") is not None:
        status["percent"] = round(100 * status["step"] / status["total_steps"], 2)
    write_atomic(run_dir / "status.json", to_json(status, indent=1) + "\n")


def read_status(run_dir: Path) -> dict[str, Any]:
    """The fields of status.json; empty where there is none."""
    return _read_json(run_dir / "status.json")


def read_provenance(run_dir: Path) -> dict[str, Any]:
    """The content of provenance.json; empty where there is none."""
    return _read_json(run_dir / "provenance.json")


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, in order; a last line that was never finished is left out."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from error


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
        "packages": _packages(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "job_id": _job_id(),
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


def _job_id() -> str | None:
    """Slurm's id of this job, as `squeue` writes it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


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
    attempt |= {"start": time.time(), "end": None, "reason": None, "first_step": step, "step": step}
    attempts.append(attempt)
    write_atomic(run_dir / "provenance.json", to_json({**information, "attempts": attempts}, indent=1) + "\n")
    return len(attempts)


def end_attempt(run_dir: Path, reason: str, step: int | None = None) -> None:
    """Note when, why (finished, stopped, failed: ...) and after which step the newest attempt ended."""
    content = read_provenance(run_dir)
    attempt = content["attempts"][-1]
    attempt |= {"end": time.time(), "reason": reason, "step": attempt["step"] if step is None else step}
    write_atomic(run_dir / "provenance.json", to_json(content, indent=1) + "\n")


def find_run(text: str, root: str | Path = "runs") -> Path:
    """The run directory that a path, or a name under `root`, stands for.

    Raises ValueError with the names that are near.
    """
    for path in (Path(text).expanduser(), Path(root) / text):
        if (path / "recipe.yaml").is_file():
            return path
    if Path(text).expanduser().is_dir():
        raise ValueError(f"{text} is no run directory: it holds no recipe.yaml")
    names = sorted(path.parent.name for path in Path(root).glob("*/recipe.yaml"))
    close = difflib.get_close_matches(text, names, n=3)
    if close:
        raise ValueError(f"no run {text!r} in {root}: did you mean {' or '.join(close)}?")
    newest = ", ".join(names[-5:]) if names else "none"
    raise ValueError(f"no run {text!r}: give a path to a run directory or a name in {root} (there are: {newest})")
