"""Checkpoints that appear whole or not at all.

    checkpoints/step-00000500/    model.safetensors  ema.safetensors  training_state.pt  manifest.json
    checkpoints/latest            a line with the newest one's name; `best` likewise

A checkpoint is written into `step-N.tmp`, every file and the folder are fsynced, the manifest with sizes and digests
comes last, then one rename makes it a checkpoint; pointers move and old ones go only after that. At every instant what
was loadable before still is. This module knows files only; what is in them is `resnet.snapshot`'s business.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from resnet.rundir import write_atomic

FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which and why."""


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    found = _NAME.fullmatch(path.name)
    assert found, path
    return int(found[1])


def commit(folder: Path, step: int, files: dict[str, bytes], facts: dict[str, Any]) -> Path:
    """Write the files as the checkpoint of a step, durably, and make it the latest.

    facts: further content of the manifest. Raises OSError with the temporary removed and all else as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final, temporary = folder / name_of(step), folder / f"{name_of(step)}.tmp"
    if final.exists():
        if not _fault(final):
            write_atomic(folder / "latest", final.name + "\n")
            return final
        _discard(final)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        listed = {name: _write(temporary / name, data) for name, data in files.items()}
        manifest = {"format": FORMAT, "step": step, "files": listed, **facts}
        _write(temporary / "manifest.json", json.dumps(manifest, indent=1).encode())
        _fsync(temporary)
        os.rename(temporary, final)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _fsync(folder)
    write_atomic(folder / "latest", final.name + "\n")
    return final


def _write(path: Path, data: bytes) -> dict[str, Any]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view[: 1 << 26]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(path: Path) -> None:
    """Take a checkpoint away: first its name, so that a half-removed one is never taken for one."""
    gone = path.with_name(f"{path.name}.old.tmp")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Remove all but the `keep` newest checkpoints and the best."""
    for path in newest_first(folder)[keep:]:
        if step_of(path) != best_step:
            _discard(path)


def clean(folder: Path) -> None:
    """Remove what interrupted saves left. Only for a run's one writer, before it saves."""
    for path in folder.glob("*.tmp") if folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def newest_first(folder: Path) -> list[Path]:
    """All checkpoints of a folder that look like one by their name."""
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=step_of, reverse=True)


def newest_valid(folder: Path, on_damaged: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files are all as its manifest says; each one passed over is reported."""
    for path in newest_first(folder):
        fault = _fault(path)
        if fault is None:
            return path
        on_damaged(f"checkpoint {path} is damaged and not used: {fault}")
    return None


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files all agree with it. Raises CheckpointError otherwise."""
    fault = _fault(path)
    if fault:
        raise CheckpointError(f"checkpoint {path} cannot be used: {fault}")
    return json.loads((path / "manifest.json").read_text())


def digest_of(path: Path) -> str:
    """What ranks compare to know that they see the same checkpoint."""
    return hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()


def _fault(path: Path) -> str | None:
    return next(_faults(path), None)


def _faults(path: Path) -> Iterator[str]:
    if path.is_symlink() or not path.is_dir():
        yield "it is not a folder"
        return
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        files, step = manifest["files"], manifest["step"]
        if manifest["format"] != FORMAT:
            yield f"its format is {manifest['format']}, this program reads {FORMAT}"
            return
        expected = [(str(name), int(facts["size"]), str(facts["sha256"])) for name, facts in files.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield f"manifest.json cannot be read ({type(error).__name__}: {error})"
        return
    if _NAME.fullmatch(path.name) and step != step_of(path):
        yield f"its manifest is of step {step}"
    for name, size, sha256 in expected:
        file = path / name
        if Path(name).name != name or file.is_symlink():
            yield f"{name} leads out of it"
            return
        try:
            found = file.stat().st_size
            if found != size:
                yield f"{name} has {found} bytes instead of {size}"
                return
            with file.open("rb") as stream:
                if _sha256(stream) != sha256:
                    yield f"{name} has changed since it was written"
        except OSError as error:
            yield f"{name} cannot be read ({error.strerror})"


def _sha256(stream: Any) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 22):
        digest.update(block)
    return digest.hexdigest()
