"""The lock of a sweep's search, among all nodes.

It and the lock of the search's journal are files created with O_EXCL, which is atomic on NFSv3 and later, on Lustre and
on GPFS; the alternative, symbolic links, is for NFSv2, and tells a stale lock by the age of the file that it points to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(sweep_dir: Path) -> Iterator[None]:
    """Alone in the sweep, among all nodes. A lock whose holder has died is broken after 30 s."""
    from optuna.storages.journal import JournalFileOpenLock

    (sweep_dir / "slurm").mkdir(exist_ok=True)
    lock = JournalFileOpenLock(str(sweep_dir / "slurm" / "search"))
    lock.acquire()
    try:
        yield
    finally:
        # RuntimeError: it was broken, after this process had been suspended for so long
        with contextlib.suppress(RuntimeError):
            lock.release()
