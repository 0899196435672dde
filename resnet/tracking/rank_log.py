"""What a rank leaves behind when it fails: its log, and who failed first."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from resnet.process.processes import is_alive
from resnet.rundir.files import to_json, write_atomic
from resnet.rundir.status import write_status

_GRACE_SECONDS = 2.0
"""How long a failing rank waits for the others' records, to tell which was the first."""


class RankLog:
    """logs/rank-R.log: where and when the rank started, its errors, and its stacks when it hangs or crashes."""

    def __init__(self, run_dir: Path, rank: int) -> None:
        self.run_dir, self.rank = run_dir, rank
        self.speaker = 0
        """Rank that tells the user of a failure: the first, or the second where the first was killed."""
        self._records = run_dir / "logs"
        self._records.mkdir(parents=True, exist_ok=True)
        _remove(self._failure_file(rank))
        self.file: TextIO = open(self._records / f"rank-{rank}.log", "a", buffering=1)  # noqa: SIM115
        self.write(f"rank {rank} starts: host {socket.gethostname()}, pid {os.getpid()}")
        where = {"host": socket.gethostname(), "pid": os.getpid()}
        write_atomic(self._records / f"rank-{rank}.json", to_json(where))
        faulthandler.enable(self.file)

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=self.file, flush=True)

    def close(self) -> None:
        faulthandler.enable(sys.__stderr__ or sys.stderr)
        self.file.close()

    def fail(self, world_size: int, step: int, reason: str, kind: str, own_fault: bool) -> str:
        """Record this rank's failure; put the first failing rank's into status.json, and return it in words.

        own_fault: False where this rank failed since another was gone.
        """
        self.write(f"failed after step {step}: {reason}")
        record = {"rank": self.rank, "host": socket.gethostname(), "step": step, "reason": reason, "failure": kind}
        record |= {"time": time.time(), "own_fault": own_fault}
        with contextlib.suppress(OSError):
            write_atomic(self._failure_file(self.rank), to_json(record))
        if world_size > 1:
            time.sleep(_GRACE_SECONDS)
        first = self._first_failure(world_size) or record
        # That of silent corruption names ranks itself, or cannot.
        where = "" if first["failure"] == "sdc" else f"rank {first['rank']} on {first['host']}, "
        words = f"{where}after step {first['step']}: {first['reason']}"
        with contextlib.suppress(OSError, ValueError):
            write_status(self.run_dir, state="failed", reason=words, failure=first["failure"], eta_s=None)
        return words

    def _first_failure(self, world_size: int) -> dict[str, Any] | None:
        records = [r for r in (_read(self._failure_file(rank)) for rank in range(world_size)) if r]
        own = [record for record in records if record["own_fault"]]
        if own:
            return min(own, key=lambda record: record["time"])
        # Those with a record of their own have left since another was gone: they are not the one that was killed.
        for rank in sorted(set(range(world_size)) - {record["rank"] for record in records}):
            place = _read(self._records / f"rank-{rank}.json")
            if place.get("host") == socket.gethostname() and not is_alive(place["pid"]):
                step = records[0]["step"] if records else 0
                self.speaker = int(rank == 0)
                return {**place, "rank": rank, "step": step, "reason": "the process was killed", "failure": "killed"}
        return min(records, key=lambda record: record["time"]) if records else None

    def _failure_file(self, rank: int) -> Path:
        return self._records / f"failure-{rank}.json"


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def _remove(file: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        file.unlink()
