"""`launch cancel`: let a run save a checkpoint and stop, or stop it at once."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
from pathlib import Path

from launch.jobs import active_job, read_job, shown
from launch.run_state import find, find_sweep, rows
from recipes.rundir import read_status, write_status
from slurm.batch import end_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's name under --root, or its directory")
    parser.add_argument("--now", action="store_true", help="do not wait for a checkpoint: the newest on disk remains")
    parser.add_argument("--root", default="runs", help="folder of the runs (runs)")


def run(arguments: argparse.Namespace) -> None:
    for text in arguments.runs:
        if sweep_dir := find_sweep(text, arguments.root):
            _cancel_sweep(sweep_dir, arguments.now)
        else:
            print(cancel(find(text, arguments.root).absolute(), arguments.now))


def _cancel_sweep(sweep_dir: Path, now: bool) -> None:
    """Cancel the trials that are under way: those that wait with one scancel for each array."""
    runs = [path.parent for path in sweep_dir.glob("*/status.json")]
    under_way = [(run, row) for run, row in zip(runs, rows(runs), strict=True) if not row["over"]]
    waiting = [(run, row) for run, row in under_way if row["state"] == "queued" and row["job_id"]]
    for run, _ in waiting:
        end_file(run, "cancelled").touch()
    for array in sorted({row["job_id"].partition("_")[0] for _, row in waiting}):
        subprocess.run(["scancel", "--state=PENDING", array], check=True, timeout=60)
    for run, _ in waiting:
        write_status(run, state="stopped", reason="cancelled", failure="user", eta_s=None)
    for run, row in under_way:
        if row["state"] == "running":
            print(cancel(run, now))
    print(f"{sweep_dir.name}: {len(waiting)} trials that waited are cancelled; launch sweep or retry would go on")


def cancel(run_dir: Path, now: bool = False) -> str:
    """Ask a run to stop; says what follows. Raises ValueError where it does not run."""
    if read_job(run_dir) is None:
        return _cancel_here(run_dir, now)
    active = active_job(run_dir)
    if active is None:
        raise ValueError(f"{run_dir.name} is not in the queue (it is {read_status(run_dir).get('state')})")
    job_id, state = active
    # Tells it from a preemption, after which it would go on.
    end_file(run_dir, "cancelled").touch()
    if state != "RUNNING" or now:
        subprocess.run(["scancel", job_id], check=True, timeout=60)
        write_status(run_dir, state="stopped", reason="cancelled", failure="user", eta_s=None)
        return f"{run_dir.name}: job {job_id} is cancelled; launch retry {shown(run_dir)} would go on"
    subprocess.run(["scancel", "--signal=USR2", job_id], check=True, timeout=60)
    return f"{run_dir.name}: job {job_id} saves a checkpoint and ends; launch status {shown(run_dir)} says when"


def _cancel_here(run_dir: Path, now: bool) -> str:
    status = read_status(run_dir)
    host, pid = status.get("host"), status.get("pid")
    if status.get("state") != "running" or not pid:
        raise ValueError(f"{run_dir.name} does not run (it is {status.get('state')})")
    if host != socket.gethostname():
        raise ValueError(f"{run_dir.name} runs on {host} and not under Slurm: cancel it there")
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes() if Path("/proc").is_dir() else b"train.py"
    except FileNotFoundError:
        command = b""
    if b"train.py" not in command and b"launch" not in command:
        raise ValueError(f"{run_dir.name} does not run any more: its process {pid} is gone")
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL if now else signal.SIGTERM)
    return f"{run_dir.name}: process {pid} " + ("is killed" if now else "saves a checkpoint and ends")
