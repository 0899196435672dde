"""The files of a run directory: written whole or not at all, read by the program, the launcher and people."""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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


def new_run_dir(root: Path, recipe_name: str) -> Path:
    """A path under `root`, made of recipe and time, that nothing has yet."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    candidates = (root / f"{recipe_name}-{stamp}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(path for path in candidates if not path.exists())
