"""Where measurements go: metrics.jsonl, which is the truth, and Weights & Biases, which is a view of it.

W&B lives in a process of its own (`resnet.tracking.wandb_process`): whatever it does there (wait for a
server, crash, hang), training neither waits for it nor ends with it.
"""

from __future__ import annotations

import json
import os
import queue
import shlex
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.schema.recipe import Recipe
from resnet.rundir.files import write_atomic
from resnet.rundir.metrics_log import Value

ONLINE_TIMEOUT = 30.0
"""Seconds that W&B may take to start where the recipe insists on it."""
AUTO_TIMEOUT = 8.0
"""Seconds that W&B may take to start where it answered the probe."""
# By its path: with -m it would be looked for in the working directory, where anything may be called like it.
_PROGRAM = Path(__file__).with_name("wandb_process.py")
QUEUE_ROWS = 10_000
"""Rows that may wait for W&B before it counts as hung."""


class NullTracker:
    """A tracker that does nothing: without W&B, and on all ranks but the first."""

    @property
    def started(self) -> bool:
        """Whether `url` and `note` are known, and need not be waited for."""
        return True

    @property
    def url(self) -> str | None:
        """Page of the run."""
        return None

    @property
    def note(self) -> str:
        """One line on where W&B's data goes; empty: nothing to tell."""
        return ""

    def log(self, row: Mapping[str, Value]) -> None:
        """Send a row of metrics.jsonl."""

    def summary(self, values: Mapping[str, Value]) -> None:
        """Set the run's summary values, as the best top-1."""

    def end(self, exit_code: int = 0) -> None:
        """Begin to end W&B's part: nothing more will be logged."""

    def finish(self, exit_code: int = 0, timeout: float = 30.0) -> None:
        """End W&B's part, waiting for uploads at most `timeout` seconds."""

    def sync_command(self) -> str | None:
        """The command that uploads what is only on the disk; None: nothing is."""
        return None


class WandbTracker(NullTracker):
    """A W&B run, held by a process of its own that is told what to do in lines of JSON.

    It starts while training does: rows wait for it. Trouble of any kind is told once on stderr; from then on the
    tracker does nothing.
    """

    def __init__(self, request: dict[str, Any], run_dir: Path, start_timeout: float) -> None:
        self._run_dir, self._id = run_dir, request["id"]
        self._broken, self._finishing = False, False
        self._lock = threading.Lock()
        self._start_timeout, self._deadline = start_timeout, time.monotonic() + start_timeout
        self._rows: queue.Queue[dict[str, Any]] = queue.Queue(QUEUE_ROWS)
        self._answer: dict[str, Any] | None = None
        self._started, self._ended = threading.Event(), threading.Event()
        self._process = _start_process(run_dir)
        self._rows.put(request)
        for target in (self._write, self._read):
            threading.Thread(target=target, name=f"wandb{target.__name__}", daemon=True).start()

    @property
    def started(self) -> bool:
        return self._started.is_set() or time.monotonic() > self._deadline

    @property
    def url(self) -> str | None:
        return self._answer_waited_for().get("url")

    @property
    def note(self) -> str:
        return self._answer_waited_for().get("note", "")

    def _answer_waited_for(self) -> dict[str, Any]:
        if not self._started.wait(max(0.0, self._deadline - time.monotonic())):
            self._give_up(f"no start within {self._start_timeout:g} s")
        return self._answer or {}

    def log(self, row: Mapping[str, Value]) -> None:
        self._send({"do": "log", "values": dict(row)})

    def summary(self, values: Mapping[str, Value]) -> None:
        self._send({"do": "summary", "values": dict(values)})

    def end(self, exit_code: int = 0) -> None:
        self._send({"do": "finish", "exit_code": exit_code})
        self._finishing = True

    def finish(self, exit_code: int = 0, timeout: float = 30.0) -> None:
        self.end(exit_code)
        if not self._broken and not self._ended.wait(timeout):
            self._give_up(f"not done within {timeout:g} s")

    def sync_command(self) -> str | None:
        """The command that uploads the offline parts of this run, one for each attempt, into one run.

        With --id, `wandb sync` (0.29 and later) uploads them in order of their start, each after the last.
        """
        parts = sorted(self._run_dir.glob(f"wandb/offline-run-*-{self._id}"))
        if not parts:
            return None
        where = shlex.quote(str(parts[0]))
        if len(parts) > 1:
            where = f"{shlex.quote(str(self._run_dir))}/wandb/offline-run-*-{self._id}"
        return f"wandb sync --id {self._id} {where}"

    def _send(self, message: dict[str, Any]) -> None:
        if self._broken or self._finishing:
            return
        try:
            self._rows.put_nowait(message)
        except queue.Full:
            self._give_up("it takes no more data")

    def _write(self) -> None:
        assert self._process.stdin is not None
        try:
            while not self._ended.is_set():
                line = memoryview(json.dumps(self._rows.get()).encode() + b"\n")
                while line:
                    line = line[self._process.stdin.write(line) or 0 :]
        except OSError as error:
            self._give_up(f"its process is gone ({error.strerror})")

    def _read(self) -> None:
        assert self._process.stdout is not None
        finished = False
        for line in self._process.stdout:
            answer = json.loads(line)
            if "failed" in answer:
                self._give_up(answer["failed"])
            finished = finished or "finished" in answer
            if "note" in answer:
                self._answer = answer
                self._started.set()
        if not finished:
            self._give_up("its process ended")
        self._process.wait()
        self._ended.set()

    def _give_up(self, why: str) -> None:
        with self._lock:
            first, self._broken = not self._broken, True
        if first:
            print(f"W&B: {why}; continuing without it (see {self._run_dir}/logs/wandb.log)", file=sys.stderr)
        self._process.kill()
        self._started.set()


def _start_process(run_dir: Path) -> subprocess.Popen[bytes]:
    (run_dir / "logs").mkdir(exist_ok=True)
    with open(run_dir / "logs" / "wandb.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
            start_new_session=True,  # a Ctrl-C on the terminal is for the trainer, which then says goodbye to W&B
        )


def open_wandb(recipe: Recipe, run_dir: Path, provenance: Mapping[str, Any], run_id: str | None = None) -> NullTracker:
    """Start W&B for a run, on the first rank only; never raises, and does not wait for it.

    recipe.wandb.mode=auto asks W&B's own settings (WANDB_MODE, `wandb offline`, `wandb disabled`) first, is online
    where a key is set and the server answers within 3 s, and offline otherwise.
    provenance: of `rundir.provenance`, for the commit.
    run_id: W&B's id of the run; None: the one kept in the run directory, or a new one kept there.
    """
    mode = recipe.wandb.mode
    if mode == "disabled" or (mode == "auto" and os.environ.get("WANDB_MODE") == "disabled"):
        return NullTracker()
    git = provenance.get("git") or {}
    config = recipe.model_dump(mode="json") | {"git_sha": git.get("sha"), "git_changed": git.get("changed")}
    timeout = ONLINE_TIMEOUT if mode == "online" else AUTO_TIMEOUT
    try:
        request = {
            "mode": mode,
            "id": run_id or _run_id(run_dir),
            "name": run_dir.name,
            "dir": str(run_dir.resolve()),
            "config": config | {"world_size": provenance.get("world_size")},
            "argv": sys.argv,
            "pid": os.getpid(),
            "init_timeout": timeout,
            **recipe.wandb.model_dump(include={"project", "entity", "group", "sweep", "tags", "notes"}),
        }
        return WandbTracker(request, run_dir, start_timeout=timeout + 15)
    except OSError as error:
        print(f"W&B: {error}; continuing without it", file=sys.stderr)
        return NullTracker()


def _run_id(run_dir: Path) -> str:
    path = run_dir / "wandb_id.txt"
    if path.is_file() and (known := path.read_text().strip()):
        return known
    made = uuid.uuid4().hex[:8]
    write_atomic(path, made + "\n")
    return made
