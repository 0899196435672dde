"""Ranks of a run as real processes, forked from one that has imported everything: fast enough to kill many."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

from resnet.process.exit_codes import FINISHED, STOPPED

GRACE_SECONDS = 10


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_ranks(
    argv: Sequence[str], world_size: int, output: Path, program: Callable[[Sequence[str]], int | None] | None = None
) -> list[int]:
    """Start a training (or another program) on so many ranks (gloo, one thread each); returns their process ids."""
    port = free_port()
    children = []
    for rank in range(world_size):
        child = os.fork()
        if child == 0:
            _be_a_rank(argv, rank, world_size, port, output, program)
        children.append(child)
    return children


def _be_a_rank(
    argv: Sequence[str],
    rank: int,
    world_size: int,
    port: int,
    output: Path,
    program: Callable[[Sequence[str]], int | None] | None,
) -> None:
    code = 1
    try:
        os.setsid()
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        sys.argv = ["train.py", *argv]
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)
        if world_size > 1:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            os.environ.update(WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size))
        os.sched_setaffinity(0, {rank % os.cpu_count()} if os.cpu_count() else {0})
        import torch

        from resnet.main import main

        torch.set_num_threads(1)
        # Pictures take longer than the rest of a tiny run.
        with mock.patch("resnet.tools.report.report.write_report"):
            code = (program or main)(argv) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait_ranks(children: Sequence[int], seconds: float) -> list[int]:
    """Exit codes, negative for signals; what has not ended in time is killed and counts as -9.

    As launchers do, it is killed too a while after another one has ended badly: it may wait for that one to join.
    """
    deadline = time.monotonic() + seconds
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in children:
            if child in codes:
                continue
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
                if codes[child] not in (FINISHED, STOPPED):
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        if time.monotonic() > deadline:
            for child in children:
                if child not in codes:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.01)
    return [codes[child] for child in children]
