"""Checkpoints that appear whole or not at all.

    checkpoints/step-00000500/    model.safetensors  ema.safetensors  training_state.pt  manifest.json
    checkpoints/latest            a line with the newest one's name; `best` likewise

A checkpoint is written into `step-N.tmp`, every file and the folder are fsynced, the manifest with sizes and digests
comes last, then one rename makes it a checkpoint; pointers move and old ones go only after that. At every instant what
was loadable before still is. This module knows files only; what is in them is `resnet.checkpoint.snapshot`'s business.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from resnet.rundir.attempts import step_of_name
from resnet.rundir.files import discard, remove, sync_folder, write_atomic

FORMAT = 1
MANIFEST = "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which and why."""


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    step = step_of_name(path.name)
    assert step is not None, path
    return step


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
        discard(final)
    try:
        remove(temporary)
        temporary.mkdir()
        listed = {name: _write(temporary / name, data) for name, data in files.items()}
        manifest = {"format": FORMAT, "step": step, "files": listed, **facts}
        _write(temporary / MANIFEST, json.dumps(manifest, indent=1).encode())
        sync_folder(temporary)
        os.rename(temporary, final)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder)
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


def prune(folder: Path, step: int, keep: int, best_step: int | None) -> None:
    """Remove all but the `keep` newest checkpoints up to that of `step`, just written, and the best.

    Those of later steps were passed over when the run went on from an earlier one; they do not count as the newest.
    """
    found = newest_first(folder)
    passed_over = [path for path in found if step_of(path) > step]
    for path in [*passed_over, *found[len(passed_over) + keep :]]:
        if step_of(path) != best_step:
            discard(path)


def clean(folder: Path) -> None:
    """Remove what interrupted saves left. Only for a run's one writer, before it saves."""
    for path in folder.glob("*.tmp") if folder.is_dir() else ():
        remove(path)


def newest_first(folder: Path) -> list[Path]:
    """All checkpoints of a folder that look like one by their name."""
    found = [path for path in folder.iterdir() if step_of_name(path.name) is not None] if folder.is_dir() else []
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
    return json.loads((path / MANIFEST).read_text())


def digest_of(path: Path) -> str:
    """What ranks compare to know that they see the same checkpoint."""
    return hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()


def _fault(path: Path) -> str | None:
    return next(_faults(path), None)


def _faults(path: Path) -> Iterator[str]:
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            yield "it is not a folder"
            return
        if not stat.S_ISREG((path / MANIFEST).lstat().st_mode):
            yield "manifest.json is not a plain file"
            return
        manifest = json.loads((path / MANIFEST).read_text())
        files, step = manifest["files"], manifest["step"]
        if manifest["format"] != FORMAT:
            yield f"its format is {manifest['format']}, this program reads {FORMAT}"
            return
        expected = [(str(name), int(facts["size"]), str(facts["sha256"])) for name, facts in files.items()]
    except Exception as error:
        # What a stranger wrote can fail in any way (a RecursionError, an OverflowError ...).
        yield f"manifest.json cannot be read ({type(error).__name__}: {error})"
        return
    if step_of_name(path.name) not in (None, step):
        yield f"its manifest is of step {step}"
    for name, size, sha256 in expected:
        file = path / name
        if Path(name).name != name:
            yield f"{name} leads out of it"
            return
        try:
            found = file.lstat()
            if not stat.S_ISREG(found.st_mode):
                yield f"{name} is not a plain file"
                return
            if found.st_size != size:
                yield f"{name} has {found.st_size} bytes instead of {size}"
                return
            with file.open("rb") as stream:
                if sha256_of(stream) != sha256:
                    yield f"{name} has changed since it was written"
        except (OSError, ValueError) as error:
            yield f"{name} cannot be read ({error})"


def sha256_of(stream: Any) -> str:
    """Hex digest of what is left of a binary file."""
    digest = hashlib.sha256()
    while block := stream.read(1 << 22):
        digest.update(block)
    return digest.hexdigest()
