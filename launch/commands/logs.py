"""`launch logs`: what the ranks of a run printed, also while they go on."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from launch.arguments import add_root
from launch.runs.logs import attempts, first_failure, log_file, log_files, newest_batch_files, place_of_log
from launch.runs.state import find, rows
from resnet.rundir.status import status_or_nothing

POLL_SECONDS = 0.5
ASK_SECONDS, ASK_SECONDS_MOST = 5, 60
"""Between looks at whether a silent run is over, which may ask Slurm: at first, and after a while."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's name or directory")
    parser.add_argument("-f", "--follow", action="store_true", help="go on as it grows, until the run is over")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--rank", type=int, metavar="R", help="rank (0; of a failed run the one that failed first)")
    which.add_argument("--batch", action="store_true", help="the output of Slurm's batch script instead")
    parser.add_argument("--attempt", type=int, metavar="K", help="attempt, counted from 1 (the newest)")
    add_root(parser)


def run(arguments: argparse.Namespace) -> None:
    run_dir = find(arguments.run, arguments.root)
    if arguments.batch:
        if arguments.attempt is not None:
            raise ValueError("the batch script's output is of all attempts: leave out --attempt or --batch")
        if arguments.follow:
            _follow(run_dir, lambda: next(iter(newest_batch_files(run_dir)), None))
            return
        for file in newest_batch_files(run_dir) or [None]:
            _print(run_dir, file)
        return
    rank, attempt = arguments.rank, arguments.attempt
    if rank is None:
        rank = _rank_to_show(run_dir, attempt)
    if attempt is not None and attempt not in attempts(run_dir):
        raise ValueError(_no_attempt(run_dir, attempt))
    problem = _no_rank(run_dir, rank, attempt)
    if arguments.follow:
        if problem:
            print(f"{problem}; waiting for it", file=sys.stderr, flush=True)
        _follow(run_dir, lambda: log_file(run_dir, rank, attempt))
    elif problem:
        raise ValueError(problem)
    else:
        _print(run_dir, log_file(run_dir, rank, attempt))


def _rank_to_show(run_dir: Path, attempt: int | None) -> int:
    """The first rank that failed where it is its attempt that is asked for, else 0."""
    newest = attempt is None or attempt == max(attempts(run_dir), default=None)
    if newest and status_or_nothing(run_dir).get("state") == "failed" and (first := first_failure(run_dir)):
        print(f"failed first: {first[1].partition(chr(10))[0]}", file=sys.stderr, flush=True)
        return first[0]
    return 0


def _no_rank(run_dir: Path, rank: int, attempt: int | None) -> str | None:
    known = log_files(run_dir, attempt)
    if not known or rank in known:
        return None
    if place := place_of_log(run_dir, rank, attempt):
        return place
    of = f"of attempt {attempt}" if attempt else f"of attempt {attempts(run_dir)[-1]}" if attempts(run_dir) else ""
    return f"no log of rank {rank}{' ' * bool(of)}{of}: there are {_ranges(list(known))}"


def _no_attempt(run_dir: Path, attempt: int) -> str:
    if known := attempts(run_dir):
        return f"no logs of attempt {attempt}: there are {_ranges(known)}"
    if log_files(run_dir):
        return "a run without Slurm has one log a rank for all its attempts: leave out --attempt"
    return f"no logs of attempt {attempt}: there are none yet"


def _ranges(numbers: list[int]) -> str:
    """0-7, 9: sorted numbers in few words."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _print(run_dir: Path, file: Path | None) -> None:
    if file is None:
        _say_none(rows([run_dir])[0])
        return
    with open(file, "rb") as log:
        _copy(log)


def _say_none(row: dict[str, Any]) -> None:
    why = f" ({row['reason']})" if row["reason"] else ""
    print(f"no log{'' if row['over'] else ' yet'}: the run is {row['state']}{why}", file=sys.stderr, flush=True)


def _follow(run_dir: Path, newest: Callable[[], Path | None]) -> None:
    """Print the file that `newest()` gives, what is added, and the files that come after it, until the run is over."""
    file, log, told = None, None, False
    next_look, pause, seen, over = 0.0, ASK_SECONDS, None, False
    try:
        while True:
            # Before the last read, which then misses nothing.
            state = status_or_nothing(run_dir).get("state")
            if state != seen or time.monotonic() >= next_look:
                row = rows([run_dir])[0]
                pause = pause if state == seen else ASK_SECONDS
                seen, over = state, row["over"]
                next_look = time.monotonic() + pause
                pause = min(2 * pause, ASK_SECONDS_MOST) if row["job_id"] else ASK_SECONDS
                if newest() is None and not told:
                    _say_none(row)
                    told = True
            grown = _copy(log) if log is not None else 0
            now_newest = newest()
            if now_newest is not None and (log is None or now_newest != file or _was_replaced(now_newest, log)):
                if log is not None:
                    log.close()
                    print(f"==> {now_newest.relative_to(run_dir)} <==", file=sys.stderr, flush=True)
                file, log = now_newest, open(now_newest, "rb")  # noqa: SIM115
                grown += _copy(log)
            if over:
                return
            if grown:
                # What prints is alive: no need to ask.
                pause, next_look = ASK_SECONDS, time.monotonic() + ASK_SECONDS
            time.sleep(POLL_SECONDS)
    finally:
        if log is not None:
            log.close()


def _copy(log: BinaryIO) -> int:
    """Print what is left of an open file; returns its size in bytes."""
    start = log.tell()
    shutil.copyfileobj(log, sys.stdout.buffer)
    sys.stdout.buffer.flush()
    return log.tell() - start


def _was_replaced(file: Path, log: BinaryIO) -> bool:
    """Whether a file is another than the open one, or was cut."""
    with contextlib.suppress(OSError):
        now = file.stat()
        return not os.path.samestat(now, os.fstat(log.fileno())) or now.st_size < log.tell()
    return False
