"""A real Slurm for tests, and `launch` as a user types it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm import testcluster
from tests.helpers import PROGRAM, status
from tests.processes import start_ranks, wait_ranks

ON_CLUSTER = ["cluster=local-test", "slurm.time=5"]


def need_slurm() -> None:
    """Skip what calls it (a module, a test) where Slurm's packages are missing, or fail it with REQUIRE_SLURM=1."""
    try:
        testcluster.check_packages()
    except ValueError as error:
        if os.environ.get("REQUIRE_SLURM"):
            raise
        pytest.skip(f"NO SLURM TESTED: {error}", allow_module_level=True)


class Cluster:
    """A test cluster, and a folder that runs are sent from."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.folder, self.work = folder, work
        self.environment = os.environ | testcluster.environment(folder) | {"PYTHONPATH": str(PROGRAM)}

    def ask(self, *command: object, code: int | None = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd or self.work,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert code in (None, done.returncode), done.stdout + done.stderr
        return done

    def launch(self, *words: object, **keys) -> subprocess.CompletedProcess[str]:
        return self.ask(sys.executable, "-m", "launch", *words, **keys)

    def run_dir(self, name: str) -> Path:
        return self.work / "runs" / name

    def job(self, name: str) -> str:
        return json.loads((self.run_dir(name) / "slurm" / "job.json").read_text())["job_id"]

    def queue(self) -> dict[str, str]:
        """State by job id."""
        return dict(line.split() for line in self.ask("squeue", "-h", "-o", "%i %T").stdout.splitlines())

    def wait(self, what: str, ready: Callable[[], object], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not within {seconds:g} s\n{self._why()}")
            time.sleep(0.2)

    def wait_end(self, name: str, seconds: float = 300) -> dict:
        """Until the run's job has left the queue; returns the run's status."""
        job = self.job(name)
        self.wait(f"{name} ends", lambda: job not in self.queue(), seconds)
        return status(self.run_dir(name))

    def wait_step(self, name: str, step: int, attempt: int = 1) -> None:
        """Until the run has made so many steps in an attempt."""

        def there() -> bool:
            with contextlib.suppress(OSError, ValueError):
                now = status(self.run_dir(name))
                return now.get("attempts") == attempt and now["state"] == "running" and (now.get("step") or 0) >= step
            return False

        self.wait(f"{name} at step {step}", there)

    def attempts(self, name: str) -> list[dict]:
        from resnet.rundir.attempts import read_attempts

        return read_attempts(self.run_dir(name))

    def fail_node(self, node: str) -> None:
        """What a node that loses its power is to the others: its slurmd, steps and tasks are gone at once."""
        conf, name = f"SLURM_CONF={self.folder}/slurm.conf".encode(), f"SLURMD_NODENAME={node}".encode()
        gone = set(self._slurmd(node))
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if {conf, name} <= {*(process / "environ").read_bytes().split(b"\0")}:
                    parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                    is_step = (Path("/proc") / str(parent) / "comm").read_text().startswith("slurmstepd")
                    gone |= {int(process.name), *([parent] if is_step else [])}
        for pid in gone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _slurmd(self, node: str) -> list[int]:
        words = f"slurmd\0-D\0-N\0{node}\0".encode()
        pids = testcluster.status(self.folder).daemons["slurmd"]
        return [pid for pid in pids if Path(f"/proc/{pid}/cmdline").read_bytes() == words]

    def _why(self) -> str:
        logs = [*self.work.glob("runs/*/slurm/**/*_log.out"), *self.work.glob("runs/*/logs/attempt-*/*.log")]
        tails = "\n".join(f"{log}:\n{log.read_text(errors='replace')[-1500:]}" for log in logs)
        queue = self.ask("squeue", "-h", "-o", "%i %T %r", code=None).stdout
        nodes = self.ask("sinfo", "-h", "-N", "-o", "%N %T %E", code=None).stdout
        controller = (self.folder / "logs" / "slurmctld.log").read_text(errors="replace")[-4000:]
        return f"{queue}{nodes}{tails}\nslurmctld:\n{controller}"


@contextlib.contextmanager
def running_cluster(folder: Path, work: Path, nodes: int = 2, accounting: bool = True) -> Iterator[Cluster]:
    testcluster.up(folder, nodes, accounting)
    try:
        yield Cluster(folder, work)
    finally:
        testcluster.down(folder)


def tell_ranks(run: Path, number: signal.Signals) -> None:
    """Send a signal to the processes that train a run; SIGSTOP makes a run last until SIGCONT on any machine."""
    for file in run.glob("logs/rank-*.json"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(json.loads(file.read_text())["pid"], number)


def train_here(words: list, run: Path, ranks: int) -> Path:
    """The same run without Slurm, on so many ranks with a thread each."""
    words = [*words, f"run.root={run.parent}", f"run.name={run.name}"]
    children = start_ranks([str(word) for word in words], ranks, run.parent / f"{run.name}.log")
    assert wait_ranks(children, 250) == [0] * ranks, (run.parent / f"{run.name}.log").read_text()
    return run
