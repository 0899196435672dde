"""One writer for a run: a lease that only its holder renews, and that a dead holder loses.

A POSIX lock on `lease.lock` tells whether the holder lives, wherever the file system carries locks between machines.
Where it does not (and a lock of another machine is thus not seen), `lease.json`, renewed every few seconds, tells it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet.process.environment import ATTEMPT, cluster_name, is_this_job, job_id
from resnet.process.processes import pid_namespace
from resnet.rundir.files import to_json, write_atomic

RENEW_SECONDS = 10.0
STALE_SECONDS = 60.0
"""A lease of another machine that is not renewed for so long is a dead holder's."""
HANDOVER_SECONDS = 5.0
"""For the lock of an earlier attempt of the same job to be let go."""
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class LeaseHeld(ValueError):
    """Somebody else writes the run; the message says who."""


class Lease:
    """Held from `acquire` to `release`, by one process for one run directory."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir, self._file, self._lock_file = run_dir, run_dir / "lease.json", run_dir / "lease.lock"
        self._token = uuid.uuid4().hex
        self._count = 0
        self._descriptor: int | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self.lost = False
        """Whether somebody else has taken the lease over."""

    def acquire(self, say: Callable[[str], None] = print) -> None:
        """Take the lease, waiting for a machine's that may be dead. Raises LeaseHeld where its holder lives."""
        self._descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + HANDOVER_SECONDS
        while not self._lock():
            if not _is_earlier_attempt_of_this_job(read_lease(self._run_dir)):
                self._close()
                raise LeaseHeld(self._held_by(read_lease(self._run_dir))) from None
            if time.monotonic() > deadline:
                # On a node that is gone; should it live, it finds the lease taken over before it writes.
                break
            time.sleep(0.1)
        try:
            self._wait_while_another_machine_may_live(say)
        except LeaseHeld:
            self._close()
            raise
        self._renew()
        self._thread.start()

    def check(self) -> bool:
        """Whether the lease is still ours: asked before anything is written to the run."""
        if read_lease(self._run_dir).get("token") != self._token:
            self.lost = True
        return not self.lost

    def release(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            # It may be renewing: what it writes after we removed the file would look like a holder.
            self._thread.join(RENEW_SECONDS)
        if self._descriptor is not None and self.check():
            with contextlib.suppress(OSError):
                self._file.unlink()
        self._close()

    def _lock(self) -> bool:
        """Lock the file, if nobody else has; also true where the file system has no locks."""
        assert self._descriptor is not None
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in _NO_LOCKS_HERE
        return True

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _wait_while_another_machine_may_live(self, say: Callable[[str], None]) -> None:
        seen = read_lease(self._run_dir)
        if not seen or seen.get("host") == socket.gethostname() or _is_earlier_attempt_of_this_job(seen):
            return
        say(f"{self._held_by(seen)}; waiting up to {STALE_SECONDS:g} s to see whether it still lives")
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(1)
            now = read_lease(self._run_dir)
            if not now:
                return
            if now != seen:
                raise LeaseHeld(self._held_by(now))

    def _held_by(self, holder: dict[str, Any]) -> str:
        job = f", job {holder['job_id']}" if holder.get("job_id") else ""
        who = f"process {holder['pid']} on {holder['host']}{job}" if holder else "another process"
        return f"{self._run_dir} is being trained by {who}: stop that one first, or choose another run.name"

    def _renew(self) -> None:
        self._count += 1
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "pid_namespace": pid_namespace()}
        holder |= {"job_id": job_id(), "cluster": cluster_name(), "attempt": _attempt()}
        write_atomic(self._file, to_json({**holder, "token": self._token, "count": self._count, "time": time.time()}))

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            # A full disk must not end the run here; the checkpoint's failure tells of it.
            with contextlib.suppress(OSError):
                if not self.check():
                    return
                self._renew()
                # Where an earlier attempt, on a node that is gone, had it longer than we waited.
                self._lock()


def read_lease(run_dir: Path) -> dict[str, Any]:
    """The holder's host, pid, job and token; empty where nobody holds the run."""
    try:
        holder = json.loads((run_dir / "lease.json").read_text())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def holder_elsewhere(run_dir: Path) -> str | None:
    """Who trains a run at this moment, in words; None where nobody does, or only an earlier attempt of this job."""
    seen = read_lease(run_dir)
    if not seen or is_this_job(seen.get("job_id"), seen.get("cluster")):
        return None
    try:
        with open(run_dir / "lease.lock", "r+b") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Nobody has it locked; on another machine the lock may not be seen, and the age of the lease tells.
        alive = seen["host"] != socket.gethostname() and time.time() - seen["time"] < STALE_SECONDS
    except FileNotFoundError:
        alive = False
    except OSError as error:
        alive = error.errno not in _NO_LOCKS_HERE
    job = f", job {seen['job_id']}" if seen.get("job_id") else ""
    return f"{run_dir} is being trained by process {seen['pid']} on {seen['host']}{job}" if alive else None


def _is_earlier_attempt_of_this_job(holder: dict[str, Any]) -> bool:
    """An earlier attempt of a job is ended, by Slurm or by the batch script, before the next begins."""
    if not is_this_job(holder.get("job_id"), holder.get("cluster")):
        return False
    before, own = holder.get("attempt"), _attempt()
    if isinstance(before, int) and own is not None:
        return before < own
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def _attempt() -> int | None:
    """The number of the attempt in a job's batch script."""
    number = os.environ.get(ATTEMPT, "")
    return int(number) if number.isdigit() else None
