"""`launch cancel`: let a run save a checkpoint and stop, or stop it at once; of a sweep, all; and what follows."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
from pathlib import Path

from launch.arguments import add_root, for_each
from launch.runs.chain import DAMAGED, Row, known, read, step_rows
from launch.runs.job_record import active_job, read_job
from launch.runs.send import shown
from launch.runs.state import find, rows
from launch.sweep.directory import cancel_file
from launch.sweep.page import write_page
from resnet.process.exit_codes import FINISHED
from resnet.process.processes import pid_namespace
from resnet.rundir.attempts import end_as_told, end_file
from resnet.rundir.chain import TRAIN
from resnet.rundir.find import find_sweep
from resnet.rundir.lease import holder_elsewhere, read_lease
from resnet.rundir.status import read_status, write_status
from resnet.rundir.sweep.results import has_ended
from slurm.control import ask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="name under --root, or directory, of a run or a sweep")
    parser.add_argument("--now", action="store_true", help="do not wait for a checkpoint: the newest on disk remains")
    add_root(parser)


def run(arguments: argparse.Namespace) -> int:
    return for_each(arguments.runs, "launch cancel", lambda name: _cancel(name, arguments))


def _cancel(name: str, arguments: argparse.Namespace) -> int:
    sweep_dir = find_sweep(name, arguments.root)
    subject = sweep_dir or find(name, arguments.root).absolute()
    told = _cancel_chain(subject, arguments.now)
    print(*told, sep="\n", end="\n" if told else "")
    if told and (has_ended(sweep_dir) if sweep_dir else rows([subject])[0]["over"]):
        return FINISHED
    if sweep_dir:
        _cancel_sweep(sweep_dir, arguments.now)
    else:
        print(cancel(subject, arguments.now))
    return FINISHED


def _cancel_chain(subject: Path, now: bool) -> list[str]:
    """End the steps that follow a run or a sweep, and say what becomes of them; nothing without such steps."""
    chain = read(subject)
    if chain is None:
        return []
    jobs, trouble = known(chain)
    if trouble:
        raise ValueError(trouble)
    found = [row for row in step_rows(chain, jobs, None) if row["state"] in ("queued", "running", DAMAGED)]
    if not found:
        return []
    if chain.problem:
        return [f"{subject.name}: what follows it is not cancelled: {chain.problem}"]
    if "pid" in chain.content:
        if chain.is_elsewhere:
            raise ValueError(f"the chain of {subject.name} runs on {chain.content['host']}: cancel it there")
        with contextlib.suppress(ProcessLookupError):
            os.kill(chain.content["pid"], signal.SIGTERM)
        return [f"{subject.name}: its chain here, process {chain.content['pid']}, is told to end"]
    trained = [Path(row["makes"]) for row in found if row["step"] == TRAIN and _is_of(Path(row["makes"]), row)]
    jobs = [row["job_id"] for row in found if not (row["makes"] and Path(row["makes"]) in trained)]
    if jobs:
        ask(["scancel", *jobs])
    ended = f"{subject.name}: jobs {', '.join(jobs)} of its chain are cancelled"
    return [*([ended] if jobs else []), *(cancel(run_dir, now) for run_dir in trained)]


def _is_of(run_dir: Path, step: Row) -> bool:
    """Whether a run is trained by the job of this step."""
    job = read_job(run_dir)
    return job is not None and job.job_id == step["job_id"]


def cancel(run_dir: Path, now: bool = False) -> str:
    """Ask a run to stop; says what follows. Raises ValueError where it does not run."""
    if read_job(run_dir) is None:
        return _cancel_here(run_dir, now)
    active = active_job(run_dir)
    if active is None:
        raise ValueError(f"{run_dir.name} is not in the queue (it is {read_status(run_dir).get('state')})")
    job_id = active[0]
    # It tells the end from a preemption; the batch script sees it and tells the ranks, should they not listen yet.
    end_file(run_dir, "cancelled").touch()
    ask(["scancel", job_id] if now else ["scancel", "--state=PENDING", job_id])
    if now or active_job(run_dir) is None:
        write_status(run_dir, **end_as_told("cancelled"))
        return f"{run_dir.name}: job {job_id} is cancelled; launch retry {shown(run_dir)} continues it"
    with contextlib.suppress(ValueError):
        ask(["scancel", "--signal=USR2", job_id])
    return f"{run_dir.name}: job {job_id} saves a checkpoint and ends; launch status {shown(run_dir)} says when"


def _cancel_here(run_dir: Path, now: bool) -> str:
    holder = holder_elsewhere(run_dir)
    if holder is None:
        raise ValueError(f"{run_dir.name} does not run (it is {read_status(run_dir).get('state')})")
    lease = read_lease(run_dir)
    if lease.get("host") != socket.gethostname():
        raise ValueError(f"{holder}: cancel it there")
    if lease.get("pid_namespace", pid_namespace()) != pid_namespace():
        raise ValueError(f"{holder}, in another container: cancel it there")
    with contextlib.suppress(ProcessLookupError):
        os.kill(lease["pid"], signal.SIGKILL if now else signal.SIGTERM)
    if now:
        write_status(run_dir, **end_as_told("cancelled"))
    return f"{run_dir.name}: process {lease['pid']} " + ("is killed" if now else "saves a checkpoint and ends")


def _cancel_sweep(sweep_dir: Path, now: bool) -> None:
    """Cancel the trials that are under way: those that wait with one scancel for each array."""
    cancel_file(sweep_dir).touch()
    runs = [path.parent for path in sweep_dir.glob("*/status.json")]
    under_way = [(run, row) for run, row in zip(runs, rows(runs), strict=True) if not row["over"]]
    waiting = [(run, row) for run, row in under_way if row["state"] == "queued" and row["job_id"]]
    for run, _ in waiting:
        end_file(run, "cancelled").touch()
    for array in sorted({row["job_id"].partition("_")[0] for _, row in waiting}):
        ask(["scancel", "--state=PENDING", array])
    for run, _ in waiting:
        write_status(run, **end_as_told("cancelled"))
    told = 0
    for run, row in under_way:
        if row["state"] == "running":
            # It may have ended by now.
            with contextlib.suppress(ValueError):
                print(cancel(run, now))
                told += 1
    print(
        f"{sweep_dir.name}: {len(waiting)} waiting and {told} running trials are cancelled; launch sweep continues it"
    )
    write_page(sweep_dir, while_it_runs=False)
