"""A run's newest checkpoint is read while modules are imported, so that restoring it waits for no file system."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from resnet.rundir.attempts import step_of_name

_BLOCK = 1 << 22


def read_ahead(run_dir: Path) -> threading.Thread | None:
    """Let the kernel of this machine have the files of a run's newest checkpoint in its cache, once a machine.

    Nothing is kept by this process, and what cannot be read is told by what restores it. None: there is nothing to do.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return None
    try:
        folder = run_dir / "checkpoints"
        newest = folder / (folder / "latest").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    if step_of_name(newest.name) is None or newest.parent != folder:
        return None
    thread = threading.Thread(target=_read, args=(newest,), name="read ahead", daemon=True)
    thread.start()
    return thread


def _read(checkpoint: Path) -> None:
    block = bytearray(_BLOCK)
    with contextlib.suppress(OSError):
        for path in sorted(checkpoint.iterdir()):
            if path.is_file():
                with path.open("rb", buffering=0) as file:
                    while file.readinto(block):
                        pass
