"""What a rank leaves behind when it fails: its log, and who failed first."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from resnet.process.environment import ATTEMPT, node_name
from resnet.process.processes import is_alive, pid_namespace
from resnet.process.rank_logs import all_are_kept, make_node_folder, node_folder, on_node, output_name
from resnet.rundir.failures import first_failure
from resnet.rundir.files import to_json, write_atomic
from resnet.rundir.status import status_or_nothing, write_status

_GRACE_SECONDS = 2.0
"""How long a failing rank waits for the others' records, to tell which was the first."""
_HANG_GRACE_SECONDS = 6.0
"""The same in a hang, which each rank notices by its own watch."""


class RankLog:
    """logs/rank-R.log: where and when the rank started, its errors, and its stacks when it hangs or crashes.

    Of many ranks all but the first keep it on their own node, and bring it to the run directory when they fail.
    """

    def __init__(self, run_dir: Path, rank: int, ranks: int = 1, attempt: int | None = None) -> None:
        self.run_dir, self.rank = run_dir, rank
        self._attempt, self._of_status = os.environ.get(ATTEMPT) or str(attempt), attempt
        self.speaker = 0
        """Rank that tells the user of a failure: the first, or the second where the first was killed."""
        self._all = all_are_kept(ranks)
        self._kept = self._all or rank == 0
        self._folder = run_dir / "logs"
        # Of an earlier attempt of a job, ranks may still live.
        self._failures = self._folder / f"attempt-{self._attempt}" if ATTEMPT in os.environ else self._folder
        self.place = self._folder / f"rank-{rank}.log"
        """Where the log is, or will be once this rank has failed."""
        if self._kept:
            self._failures.mkdir(parents=True, exist_ok=True)
        if not self._all:
            make_node_folder(run_dir, self._attempt)
        for file in [self._failure_file] if self._all or rank else self._failures.glob("failure-*.json"):
            _remove(file)
        self.file: TextIO = open(self._file(f"rank-{rank}.log"), "a", buffering=1)  # noqa: SIM115
        self.write(f"rank {rank} starts: host {node_name()}, pid {os.getpid()}")
        where = to_json({"host": node_name(), "pid": os.getpid(), "pid_namespace": pid_namespace()})
        write_atomic(self._file(f"rank-{rank}.json"), where)
        if not self._all and rank == 0:
            # For those of its node, which look whether it lives.
            write_atomic(self._on_node(f"rank-{rank}.json"), where)
        faulthandler.enable(self.file)

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=self.file, flush=True)

    def close(self) -> None:
        faulthandler.enable(sys.__stderr__ or sys.stderr)
        self.file.close()
        if not self._all:
            for name in ("rank-{}.log", "rank-{}.json", "failure-{}.json", output_name("{}")):
                _remove(self._on_node(name.format(self.rank)))
            with contextlib.suppress(OSError):
                # By the last of the node.
                node_folder(self.run_dir, self._attempt).rmdir()

    def fail(
        self, world_size: int, step: int, reason: str, kind: str, own_fault: bool, since: float | None = None
    ) -> str:
        """Record this rank's failure; put the first failing rank's into status.json, and return it in words.

        own_fault: False where this rank failed since another was gone. since: unix time from which on it hangs.
        """
        self.write(f"failed after step {step}: {reason}")
        record = {"rank": self.rank, "host": node_name(), "step": step, "reason": reason, "failure": kind}
        record |= {"time": time.time(), "own_fault": own_fault} | ({} if since is None else {"since": since})
        if not self._kept and self._is_worth_reading(kind, own_fault):
            self._bring()
        with contextlib.suppress(OSError):
            write_atomic(self._failure_file, to_json(record))
        if world_size > 1:
            time.sleep(_HANG_GRACE_SECONDS if kind == "hang" else _GRACE_SECONDS)
        first = self._first_failure(world_size) or record
        # That of silent corruption names ranks itself, or cannot.
        where = "" if first["failure"] == "sdc" else f"rank {first['rank']} on {first['host']}, "
        words = f"{where}after step {first['step']}: {first['reason']}"
        with contextlib.suppress(OSError, ValueError):
            if self._has_news(first):
                write_status(self.run_dir, state="failed", reason=words, failure=first["failure"], eta_s=None)
        return words

    def knows_of_a_hang(self) -> bool:
        """Whether a rank has written down that it hangs."""
        return any(record["failure"] == "hang" for record in self._records("failure").values())

    def _is_worth_reading(self, kind: str, own_fault: bool) -> bool:
        """Whether a person may want to read how this rank failed: not where many fail alike after the first."""
        told = any(record["own_fault"] for record in self._records("failure").values())
        return kind == "hang" or (own_fault and not told)

    def _has_news(self, first: dict[str, Any]) -> bool:
        """Whether the status does not tell it yet: that a peer was lost is less than which was.

        Not where it is a later attempt's, which did not wait for this rank to end.
        """
        known = status_or_nothing(self.run_dir)
        if self._of_status is not None and known.get("attempts", self._of_status) != self._of_status:
            return False
        if self._all:
            return True
        if known.get("state") == "failed" and known.get("failure") != "peer":
            return False
        return first["failure"] != "peer" or self.rank == 0

    def _bring(self) -> None:
        """Go on with this rank's log, and what it prints, in the run directory."""
        self._kept = True
        with contextlib.suppress(OSError):
            self._failures.mkdir(parents=True, exist_ok=True)
            _append(Path(self.file.name), self.place)
            self.file = open(self.place, "a", buffering=1)  # noqa: SIM115
            faulthandler.enable(self.file)
            printed = self._on_node(output_name(self.rank))
            if printed.is_file():
                kept = self._folder / f"attempt-{self._attempt}" / f"rank-{self.rank}.log"
                kept.parent.mkdir(exist_ok=True)
                sys.stdout.flush()
                _append(printed, kept)
                with open(kept, "a") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)

    def _first_failure(self, world_size: int) -> dict[str, Any] | None:
        failures = {rank: record for rank, record in self._records("failure").items() if rank < world_size}
        records = [*failures.values()]
        if first := first_failure(records, world_size):
            place = self._records("rank").get(first["rank"], {})
            self.speaker = 0 if first["rank"] in failures else min(failures)
            return {**first, "host": first["host"] or place.get("host", "another node")}
        # Those with a record of their own have left since another was gone: they are not the one that was killed.
        for rank, place in sorted(self._records("rank").items()):
            if rank >= world_size or rank in failures:
                continue
            if place.get("pid_namespace") == pid_namespace() and not is_alive(place["pid"]):
                step = records[0]["step"] if records else 0
                self.speaker = int(rank == 0)
                return {**place, "rank": rank, "step": step, "reason": "the process was killed", "failure": "killed"}
        return min(records, key=lambda record: record["time"]) if records else None

    def _records(self, kind: str) -> dict[int, dict[str, Any]]:
        """By rank what is in rank-R.json or failure-R.json, of those in the run directory or on this node."""
        patterns = [(self._failures if kind == "failure" else self._folder) / f"{kind}-*.json"]
        if not self._all:
            # Where a rank of another attempt ran may still be told in the run directory.
            patterns = [*(patterns if kind == "failure" else ()), self._on_node(f"{kind}-*.json")]
        return {rank: record for pattern in patterns for rank, record in _read_all(pattern)}

    @property
    def _failure_file(self) -> Path:
        name = f"failure-{self.rank}.json"
        return self._failures / name if self._kept else self._on_node(name)

    def _file(self, name: str) -> Path:
        return self._folder / name if self._kept else self._on_node(name)

    def _on_node(self, name: str) -> Path:
        return on_node(self.run_dir, self._attempt, name)


def _read_all(pattern: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for file in pattern.parent.glob(pattern.name):
        number = re.search(r"-(\d+)\.json$", file.name)
        if number and (record := _read(file)):
            yield int(number[1]), record


def _append(source: Path, target: Path) -> None:
    with open(source, "rb") as old, open(target, "ab") as new:
        shutil.copyfileobj(old, new)


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.unlink()
