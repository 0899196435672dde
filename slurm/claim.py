"""Which of a run's jobs has it, where several were sent: files of rising numbers, each made by whoever was first.

    slurm/claims/000001 000002 ...     the newest says who has the run, that nobody has it, or that it is over

A link is made on one machine only, also over NFS, and no number is used twice: of two that would follow the same claim
one does. Only the standard library, Python 3.9.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = "claims"
"""In the run's folder `slurm`."""
BEAT_SECONDS = 5.0
"""From one sign of life of the holder to the next."""
STALE_SECONDS = 180.0
"""Without one, after which the holder counts as dead, where its controller cannot be asked."""


class Claim(NamedTuple):
    """A file of `claims`."""

    number: int
    content: dict[str, Any]
    """Of a holder: request, job_id, restart, cluster, name, host. `over` where the run has ended, with how; else free.
    """

    @property
    def holder(self) -> dict[str, Any] | None:
        return self.content if self.content.get("request") and not self.over else None

    @property
    def over(self) -> str | None:
        return self.content.get("over")


def file_of(run_dir: Path, number: int) -> Path:
    return run_dir / "slurm" / FOLDER / f"{number:06}"


def newest_claim(run_dir: Path) -> Claim | None:
    """The claim that counts; None before the first."""
    try:
        names = os.listdir(run_dir / "slurm" / FOLDER)
    except OSError:
        return None
    number = max((int(name) for name in names if name.isdigit()), default=0)
    if number == 0:
        return None
    content = json.loads(file_of(run_dir, number).read_text(encoding="utf-8"))
    return Claim(number, content)


def follow(run_dir: Path, before: Claim | None, content: dict[str, Any]) -> Claim | None:
    """Make the claim that follows; None where another has. Raises OSError where the file system has no links."""
    number = before.number + 1 if before else 1
    file = file_of(run_dir, number)
    file.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(file.parent) as temporary:
        with open(temporary, "w", encoding="utf-8") as text:
            json.dump(content, text)
            text.flush()
            os.fsync(text.fileno())
        try:
            os.link(temporary, file)
        except FileExistsError:
            # An answer of NFS that was lost is asked for again, and the second says that it is there.
            if temporary.stat().st_nlink != 2:
                return None
    return Claim(number, content)


def beat(run_dir: Path, claim: Claim) -> None:
    """Give a sign of life."""
    os.utime(file_of(run_dir, claim.number))


def age(run_dir: Path, claim: Claim) -> float:
    """Seconds since the newest sign of life of a claim, by the file system's own clock."""
    with _temporary(run_dir / "slurm" / FOLDER) as temporary:
        temporary.touch()
        return temporary.stat().st_mtime - last_beat(run_dir, claim)


def last_beat(run_dir: Path, claim: Claim) -> float:
    # Opened, since NFS asks its server anew only then.
    with open(file_of(run_dir, claim.number), "rb") as file:
        return os.fstat(file.fileno()).st_mtime


@contextlib.contextmanager
def _temporary(folder: Path):
    file = folder / f".claim.{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):
            file.unlink()
