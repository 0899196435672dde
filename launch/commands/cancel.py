"""`launch cancel`: let a run save a checkpoint and stop, or stop it at once; of a sweep, all; and what follows."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from launch.arguments import add_root, for_each
from launch.runs.chain import DAMAGED, Row, known, read, step_rows
from launch.runs.held import stop
from launch.runs.job_record import Job as Sent
from launch.runs.job_record import find_jobs, read_job
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
from slurm.queue import WAITING, asked_once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="name under --root, or directory, of a run or a sweep")
    parser.add_argument("--now", action="store_true", help="do not wait for a checkpoint: the newest on disk remains")
    add_root(parser)


def run(arguments: argparse.Namespace) -> int:
    with asked_once():
        orders = Orders(arguments.now)
        code = for_each(arguments.runs, "launch cancel", lambda name: _cancel(name, orders, arguments.root))
        for line in orders.give():
            print(line)
    # Of sweeps whose last trial did not live to see that it was.
    for sweep_dir in orders.sweeps:
        write_page(sweep_dir, while_it_runs=False)
    return code


class Where(NamedTuple):
    """A job, whose id repeats over clusters."""

    client: tuple[tuple[str, str], ...]
    """Variables by which Slurm's commands reach its cluster."""
    job_id: str
    cluster: str = ""
    """Name of its profile, of one of several jobs of a run."""

    @property
    def in_words(self) -> str:
        return f"{self.job_id} on {self.cluster}" if self.cluster else self.job_id


def where(job: Sent | None, job_id: str) -> Where:
    if job is None:
        return Where((), job_id)
    return Where(tuple(sorted(job.client.items())), job_id, job.cluster if job.request else "")


class Orders:
    """What Slurm is told about all the runs that are named: one scancel for each way to end a job, on each cluster.

    now: do not wait for checkpoints.
    """

    def __init__(self, now: bool) -> None:
        self.now = now
        self.sweeps: list[Path] = []
        self._waiting: dict[Where, list[Path]] = {}
        """Runs by job; the trials of an array by that."""
        self._running: dict[Where, Path] = {}
        self._steps: list[Where] = []
        self._told: list[str] = []

    def end_run(self, run_dir: Path) -> None:
        """Raises ValueError where it does not run."""
        if (job := read_job(run_dir)) is None:
            self._told.append(_cancel_here(run_dir, self.now))
            return
        active, silent = find_jobs(run_dir)
        if not active:
            place = f"trained in job {job.job_id}" if job.held else "in the queue"
            raise ValueError(f"{run_dir.name} is not {place} (it is {read_status(run_dir).get('state')})")
        if job.held:
            self._told.append(_cancel_held(run_dir, job, self.now))
            return
        # It tells the end from a preemption; the batch script sees it and tells the ranks, should they not listen yet,
        # and a request on a cluster that does not answer ends by it when it starts.
        end_file(run_dir, "cancelled").touch()
        for one in active:
            if one.state in WAITING:
                self._waiting[where(one.job, one.job_id)] = [run_dir]
            else:
                self._running[where(one.job, one.job_id)] = run_dir
        if silent:
            which = ", ".join(where(one, one.job_id).in_words for one in silent)
            self._told.append(
                f"{run_dir.name}: not reached is job {which}, whose controller does not answer: it ends when it starts"
            )

    def end_sweep(self, sweep_dir: Path) -> None:
        cancel_file(sweep_dir).touch()
        self.sweeps.append(sweep_dir)
        runs = [path.parent for path in sweep_dir.glob("*/status.json")]
        under_way = [(run, row) for run, row in zip(runs, rows(runs), strict=True) if not row["over"]]
        waiting = [(run, row["job_id"]) for run, row in under_way if row["state"] == "queued" and row["job_id"]]
        for run, job_id in waiting:
            end_file(run, "cancelled").touch()
            self._waiting.setdefault(where(read_job(run), job_id.partition("_")[0]), []).append(run)
        told = 0
        for run, row in under_way:
            if row["state"] == "running":
                # It may have ended by now.
                with contextlib.suppress(ValueError):
                    self.end_run(run)
                    told += 1
        self._told.append(
            f"{sweep_dir.name}: {len(waiting)} waiting and {told} running trials are cancelled; "
            "launch sweep continues it"
        )

    def end_steps(self, jobs: Iterable[Where]) -> None:
        """Of a chain, which have nothing to save."""
        self._steps += jobs

    def tell(self, line: str) -> None:
        self._told.append(line)

    def give(self) -> list[str]:
        """Let Slurm do it; returns what there is to say."""
        waiting, running = [*self._waiting], [*self._running]
        _scancel([*self._steps, *(running if self.now else [])], "--quiet")
        # One that has started since the queue was asked for finds that it is cancelled.
        _scancel(waiting, "--state=PENDING")
        if not self.now:
            with contextlib.suppress(ValueError):
                _scancel(running, "--quiet", "--signal=USR2")
        now = [*self._running.values()] if self.now else []
        for run_dir in [*chain.from_iterable(self._waiting.values()), *now]:
            write_status(run_dir, **end_as_told("cancelled"))
        return [*self._told, *self._lines()]

    def _lines(self) -> Iterator[str]:
        alone = {job: runs[0] for job, runs in self._waiting.items() if runs[0].parent not in self.sweeps}
        by_run: dict[Path, list[Where]] = {}
        for job, run_dir in (alone | self._running).items():
            by_run.setdefault(run_dir, []).append(job)
        for run_dir, jobs in by_run.items():
            name, saves = shown(run_dir), [job for job in jobs if job in self._running and not self.now]
            which = f"job{'s' * (len(jobs) > 1)} {', '.join(job.in_words for job in jobs)}"
            if saves:
                told = f"job {saves[0].in_words} saves a checkpoint and ends; launch status {name} says when"
            else:
                told = f"{which} {'are' if len(jobs) > 1 else 'is'} cancelled; launch retry {name} continues it"
            yield f"{run_dir.name}: {told}"


def _scancel(jobs: Iterable[Where], *options: str) -> None:
    by_cluster: dict[Any, list[str]] = {}
    for job in jobs:
        by_cluster.setdefault(job.client, []).append(job.job_id)
    for client, job_ids in by_cluster.items():
        ask(["scancel", *options, *job_ids], client=dict(client))


def _cancel(name: str, orders: Orders, root: str) -> int:
    sweep_dir = find_sweep(name, root)
    subject = sweep_dir or find(name, root).absolute()
    if _cancel_chain(subject, orders) and (has_ended(sweep_dir) if sweep_dir else rows([subject])[0]["over"]):
        return FINISHED
    if sweep_dir:
        orders.end_sweep(sweep_dir)
    else:
        orders.end_run(subject)
    return FINISHED


def _cancel_chain(subject: Path, orders: Orders) -> bool:
    """End the steps that follow a run or a sweep; returns whether there are such steps."""
    follows = read(subject)
    if follows is None:
        return False
    jobs, trouble = known(follows)
    if trouble:
        raise ValueError(trouble)
    found = [row for row in step_rows(follows, jobs, None) if row["state"] in ("queued", "running", DAMAGED)]
    if not found:
        return False
    if follows.problem:
        orders.tell(f"{subject.name}: what follows it is not cancelled: {follows.problem}")
        return True
    if "pid" in follows.content:
        if follows.is_elsewhere:
            raise ValueError(f"the chain of {subject.name} runs on {follows.content['host']}: cancel it there")
        with contextlib.suppress(ProcessLookupError):
            os.kill(follows.content["pid"], signal.SIGTERM)
        orders.tell(f"{subject.name}: its chain here, process {follows.content['pid']}, is told to end")
        return True
    trained = [Path(row["makes"]) for row in found if row["step"] == TRAIN and _is_of(Path(row["makes"]), row)]
    steps = [row["job_id"] for row in found if not (row["makes"] and Path(row["makes"]) in trained)]
    if steps:
        client = tuple(sorted(follows.client.items()))
        orders.end_steps(Where(client, job_id) for job_id in steps)
        orders.tell(f"{subject.name}: jobs {', '.join(steps)} of its chain are cancelled")
    for run_dir in trained:
        orders.end_run(run_dir)
    return True


def _is_of(run_dir: Path, step: Row) -> bool:
    """Whether a run is trained by the job of this step."""
    job = read_job(run_dir)
    return job is not None and job.job_id == step["job_id"]


def _cancel_held(run_dir: Path, job: Sent, now: bool) -> str:
    stop(run_dir, job.job_id, job.steps, at_once=now, client=job.client)
    told = (
        f"is killed; launch retry {shown(run_dir)} {' '.join(job.retry_words)} continues it"
        if now
        else "saves a checkpoint and ends"
    )
    return f"{run_dir.name} {told}; job {job.job_id} stays yours"


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
