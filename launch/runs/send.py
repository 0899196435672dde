"""What `submit`, `retry` and `cancel` share: a run's record of its job, and how a run is sent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from launch.runs.checks import check_existing, check_paths, place, refuse_active
from launch.runs.held import Holding
from launch.runs.job_record import Job, job_file, job_text
from launch.runs.requests import Place, Request, make_requests, submission_of
from launch.runs.several import end_requests, send_several
from recipes.evidence import what_differs
from recipes.load import Loaded, dump, load_file, run_recipe_text
from recipes.plugin_files import with_own_copies
from recipes.schema.plugins import PLUGINS
from recipes.schema.recipe import Recipe
from resnet.process.signals import SIGNALS
from resnet.rundir.attempts import end_as_told, end_file
from resnet.rundir.files import write_atomic
from resnet.rundir.find import ROOT, remember_root
from resnet.rundir.status import read_status, write_status
from slurm.code_copy import take_snapshot
from slurm.control import ask
from slurm.sbatch import Submission, check_slurm
from slurm.sbatch import submit as submit_jobs

SNAPSHOTS = ".code"
"""Folder beside the runs that holds the copies of the program that their jobs run."""


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait: between a job that was sent and the note of its id, it would leave a job that nobody knows."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Withdrawn(KeyboardInterrupt):
    """Ctrl-C came while a job was sent, which was cancelled."""


def send(
    run_dir: Path,
    recipe: Recipe,
    places: Sequence[Place],
    snapshot: Path,
    cwd: Path,
    supervisor: str = Submission.supervisor,
    holding: Holding | None = None,
) -> list[Job]:
    """Send a run to Slurm; returns its jobs: several where it waits in several places.

    supervisor: module that the batch script runs; another than the usual one gets the first of them alone. holding:
    the allocation that the run is started in instead.
    Raises SlurmError where Slurm refuses it, and leaves the run as it was; Withdrawn after Ctrl-C.
    """
    jobs = []
    with _being_sent(run_dir):
        try:
            with uninterrupted():
                jobs = _send(run_dir, recipe, places, snapshot, cwd, supervisor, holding)
        except KeyboardInterrupt:
            if not jobs:
                raise
            if holding:
                holding.withdraw(run_dir)
            else:
                withdraw(run_dir, jobs)
            raise Withdrawn from None
    return jobs


def withdraw(run_dir: Path, jobs: Sequence[Job]) -> None:
    """Cancel what was just sent of a run. Its directory stays: a job may have begun."""
    end_file(run_dir, "cancelled").touch()
    told = []
    for job in jobs:
        try:
            ask(["scancel", job.job_id], client=job.client)
            told.append(f"job {job.job_id} is cancelled")
        except ValueError as error:
            told.append(f"job {job.job_id} ends when it starts ({error})")
    write_status(run_dir, **end_as_told("cancelled"))
    print(f"\n{run_dir.name}: {', '.join(told)}; what it has left is in {run_dir}", file=sys.stderr)


def _send(
    run_dir: Path,
    recipe: Recipe,
    places: Sequence[Place],
    snapshot: Path,
    cwd: Path,
    supervisor: str,
    holding: Holding | None,
) -> list[Job]:
    files = run_dir / "slurm"
    refuse_active(run_dir)
    requests = make_requests(recipe, places, run_dir)
    if supervisor != Submission.supervisor:
        requests = requests[:1]
    before = read_status(run_dir)
    resolved = files / "recipe.yaml"
    # A retry runs the job's own copy of the program, which may be older than this one and know fewer keys.
    if not (resolved.is_file() and load_file(resolved).recipe == recipe):
        write_atomic(resolved, dump(recipe))
    cancelled = end_file(run_dir, "cancelled").exists()
    end_file(run_dir, "cancelled").unlink(missing_ok=True)
    # Before a job can start, which writes its own.
    fields = {"name": run_dir.name, "recipe": recipe.name, "differs": what_differs(recipe)}
    write_status(run_dir, **fields, state="queued", reason=None, failure=None, eta_s=None)
    try:
        if len(requests) > 1:
            return send_several(run_dir, recipe, requests, places, snapshot, cwd)
        end_requests(run_dir)
        job = Job.to_send(run_dir.name, *places[0], snapshot, cwd)
        submission = submission_of(run_dir, recipe, requests[0], snapshot, cwd)
        if holding:
            job = holding.start(submission, job)
        else:
            job = replace(job, job_id=submit_jobs(replace(submission, supervisor=supervisor))[0])
    except BaseException:
        if before:
            write_status(run_dir, **{key: before.get(key) for key in ("state", "reason", "failure")})
        if cancelled:
            end_file(run_dir, "cancelled").touch()
        raise
    write_atomic(job_file(run_dir), job_text(job, job.job_id))
    return [job]


def told(jobs: Sequence[Job]) -> str:
    """What became of a run that was sent, to be read behind its name."""
    if len(jobs) == 1:
        return f"is job {jobs[0].job_id} on {jobs[0].cluster}"
    return f"waits in {len(jobs)} places: " + "; ".join(f"{job.place} (job {job.job_id})" for job in jobs)


@contextlib.contextmanager
def _being_sent(run_dir: Path) -> Iterator[None]:
    """One sender at a time."""
    (run_dir / "slurm").mkdir(exist_ok=True)
    with open(run_dir / "slurm" / "submit.lock", "w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{run_dir} is being sent by another `launch` at this moment") from None
        yield


def shown(run_dir: Path) -> str:
    """A run as it is named on this command line: by name where it lies in ./runs, else by its path."""
    default = Path.cwd() / "runs"
    return shlex.quote(run_dir.name if run_dir.parent == default else os.path.relpath(run_dir))


def submit_command(run_dir: Path) -> str:
    """What to type to send a run, wherever to.

    run_dir: a whole path.
    """
    root = [] if run_dir.parent == Path(ROOT).absolute() else [f"run.root={run_dir.parent}"]
    return shlex.join(["launch", "submit", f"recipe={run_dir}", *root, f"run.name={run_dir.name}", "cluster=NAME"])


class Prepared(NamedTuple):
    """A run that nothing speaks against sending."""

    run_dir: Path
    recipe: Recipe
    """With its place in it."""
    requests: list[Request]
    """The jobs that are to be sent."""
    is_new: bool


def prepare(loaded: Loaded, places: Sequence[Place]) -> Prepared:
    """Check a run before it is sent, and choose its directory. Raises ValueError for all that can be known to be wrong.

    places: where it is to wait, each by its profile.
    """
    recipe = loaded.recipe
    run_dir = place(loaded, places[0].profile)
    requests = make_requests(recipe, places, run_dir)
    run = recipe.run.model_copy(update={"name": run_dir.name, "root": str(run_dir.parent)})
    recipe = recipe.model_copy(update={"run": run})
    for other in places:
        if (elsewhere := place(loaded._replace(recipe=recipe), other.profile)) != run_dir:
            raise ValueError(
                f"{places[0].cluster} puts the run into {run_dir}, {other.cluster} into {elsewhere}: a run on several "
                "clusters needs one folder that all see: the same run_root in their profiles, or run.root="
            )
        # Where the job will look for runs by name.
        check_paths(recipe, other.profile.scratch)
    is_new = not run_dir.exists()
    if not is_new:
        check_existing(run_dir, loaded.recipe)
    check_slurm()
    # That the run is new has been seen here; in the job its directory is there.
    resume = "auto" if recipe.resume == "never" else recipe.resume
    return Prepared(run_dir, recipe.model_copy(update={"resume": resume}), requests, is_new)


def submit(
    prepared: Prepared,
    places: Sequence[Place],
    supervisor: str = Submission.supervisor,
    mark: str | None = None,
    holding: Holding | None = None,
) -> list[Job]:
    """Send a prepared run to Slurm; returns its jobs. Raises SlurmError, with nothing left behind.

    holding: the allocation that the run is to be started in instead.
    mark: a file to make in the run's folder `slurm`, before all else.
    """
    run_dir, recipe, _, is_new = prepared
    snapshot = take_snapshot(run_dir.parent / SNAPSHOTS)
    run_dir.mkdir(parents=True, exist_ok=not is_new)
    copies = {file: file.read_bytes() for file in (run_dir / PLUGINS).glob("*.py")}
    try:
        if mark:
            (run_dir / "slurm").mkdir(exist_ok=True)
            (run_dir / "slurm" / mark).touch()
        # A queued job runs what was sent, whatever becomes of the files.
        recipe = with_own_copies(recipe, run_dir)
        if is_new:
            write_atomic(run_dir / "recipe.yaml", run_recipe_text(recipe, run_dir / "recipe.yaml"))
        jobs = send(run_dir, recipe, places, snapshot, Path.cwd(), supervisor, holding)
    except Withdrawn:
        raise
    except BaseException:
        if is_new:
            shutil.rmtree(run_dir, ignore_errors=True)
        for file, content in copies.items():
            if file.read_bytes() != content:
                write_atomic(file, content)
        raise
    if any(one.profile.run_root for one in places):
        remember_root(run_dir.parent)
    return jobs
