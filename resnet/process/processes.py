"""Other processes of this machine: whether they live, their children, the signals they catch, and how they end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROC = Path("/proc")
_START = 19
"""Among `_fields`: the start, in clock ticks since the machine's."""


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that has ended and awaits its parent's notice does not."""
    try:
        os.kill(pid, 0)
        return not _is_zombie(pid)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        # Another user's, or a number that no process of ours can have had: not for us to call dead.
        return True


def pid_namespace() -> str:
    """Where a process has the number that this one knows it by: the machine, and of its containers the one."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()} {os.readlink(PROC / 'self/ns/pid')}"
    return socket.gethostname()


def started(pid: int) -> str | None:
    """When a process of this machine began, as text that a later process of the same number does not share.

    None where there is none.
    """
    if PROC.is_dir():
        with contextlib.suppress(OSError):
            return _fields(PROC / str(pid) / "stat")[_START]
        return None
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
    return done.stdout.strip() or None


def _is_zombie(pid: int) -> bool:
    if not PROC.is_dir():
        return False
    try:
        return _fields(PROC / str(pid) / "stat")[0] in "ZX"
    except FileNotFoundError:
        return True


def _fields(stat: Path) -> list[str]:
    """State, parent and what follows; the name before them may hold spaces and parentheses."""
    return stat.read_text().rpartition(")")[2].split()


def children(parent: int) -> list[int]:
    if not PROC.is_dir():
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True).stdout
        pairs = (line.split() for line in listing.splitlines())
        return [int(process) for process, its_parent in pairs if int(its_parent) == parent]
    found = []
    for stat in PROC.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(_fields(stat)[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a child of this process with all that descends from it, and wait until none of them is there.

    torch's launcher gives each rank a session of its own, which a signal to the launcher's group does not reach.
    """
    found = [] if process.poll() is not None else _stopped(process.pid)
    for pid in found:
        _send(os.kill, pid, signal.SIGKILL)
    # Of a leader that has ended by itself, some of the group may be left.
    _send(os.killpg, process.pid, signal.SIGKILL)
    process.wait()
    while any(map(is_alive, found)):
        time.sleep(0.01)


def _stopped(pid: int) -> list[int]:
    """A process and all that descend from it, the last ones first; none of them starts another any more."""
    _send(os.kill, pid, signal.SIGSTOP)
    return [*(found for child in children(pid) for found in _stopped(child)), pid]


def _send(send: Callable[[int, int], None], target: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        send(target, number)


def catches(process: int, number: int) -> bool:
    """Whether a process has a handler for a signal; taken to be so where the system does not tell."""
    if not PROC.is_dir():
        return True
    with contextlib.suppress(OSError):
        for line in (PROC / str(process) / "status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False
