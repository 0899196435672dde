"""What `submit`, `retry` and `cancel` share: a run's record of its job, and how a run is sent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from launch.runs.checks import check_existing, check_paths, place, refuse_active
from launch.runs.job_record import Job, job_file, job_text
from launch.runs.sizes import Sizes, find_sizes
from launch.runs.slices import slice_for
from recipes.evidence import what_differs
from recipes.load import Loaded, dump, load_file, run_recipe_text
from recipes.plugin_files import with_own_copies
from recipes.schema.plugins import PLUGINS
from recipes.schema.recipe import Recipe
from resnet.process.signals import SIGNALS
from resnet.rundir.attempts import end_as_told, end_file
from resnet.rundir.files import write_atomic
from resnet.rundir.find import remember_root
from resnet.rundir.status import read_status, write_status
from slurm.code_copy import take_snapshot
from slurm.control import ask
from slurm.profile import Profile
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
    cluster: str,
    profile: Profile,
    snapshot: Path,
    cwd: Path,
    supervisor: str = Submission.supervisor,
) -> str:
    """Send a run to Slurm; returns the id of its job. supervisor: module that the batch script runs.

    Raises SlurmError where Slurm refuses it, and leaves the run as it was; Withdrawn after Ctrl-C.
    """
    job_id = None
    with _being_sent(run_dir):
        try:
            with uninterrupted():
                job_id = _send(run_dir, recipe, cluster, profile, snapshot, cwd, supervisor)
        except KeyboardInterrupt:
            if job_id is None:
                raise
            withdraw(run_dir, job_id)
            raise Withdrawn from None
    return job_id


def withdraw(run_dir: Path, job_id: str) -> None:
    """Cancel a job that was just sent. Its directory stays: the job may have begun."""
    end_file(run_dir, "cancelled").touch()
    try:
        ask(["scancel", job_id])
        told = "is cancelled"
    except ValueError as error:
        told = f"ends when it starts ({error})"
    write_status(run_dir, **end_as_told("cancelled"))
    print(f"\n{run_dir.name}: job {job_id} {told}; what it has left is in {run_dir}", file=sys.stderr)


def _send(
    run_dir: Path, recipe: Recipe, cluster: str, profile: Profile, snapshot: Path, cwd: Path, supervisor: str
) -> str:
    files = run_dir / "slurm"
    refuse_active(run_dir)
    sizes = find_sizes(recipe, profile, run_dir)
    before = read_status(run_dir)
    resolved = files / "recipe.yaml"
    # A retry runs the job's own copy of the program, which may be older than this one and know fewer keys.
    if not (resolved.is_file() and load_file(resolved).recipe == recipe):
        write_atomic(resolved, dump(recipe))
    cancelled = end_file(run_dir, "cancelled").exists()
    end_file(run_dir, "cancelled").unlink(missing_ok=True)
    # Before the job can start, which writes its own.
    fields = {"name": run_dir.name, "recipe": recipe.name, "differs": what_differs(recipe)}
    write_status(run_dir, **fields, state="queued", reason=None, failure=None, eta_s=None)
    job = Job.to_send(run_dir.name, cluster, profile, snapshot, cwd)
    try:
        submission = submission_of(run_dir, recipe, cluster, profile, sizes, snapshot, cwd)
        job_id = submit_jobs(replace(submission, supervisor=supervisor))[0]
    except BaseException:
        if before:
            write_status(run_dir, **{key: before.get(key) for key in ("state", "reason", "failure")})
        if cancelled:
            end_file(run_dir, "cancelled").touch()
        raise
    write_atomic(job_file(run_dir), job_text(job, job_id))
    return job_id


def submission_of(
    run_dir: Path, recipe: Recipe, cluster: str, profile: Profile, sizes: Sizes, snapshot: Path, cwd: Path
) -> Submission:
    """What is sent of a run in one job."""
    files, profile = run_dir / "slurm", profile.on_nodes(sizes.widest)
    slice_ = slice_for(recipe, cluster, profile, run_dir)
    runs, resolved = [run_dir], [files / "recipe.yaml"]
    return Submission(profile, run_dir.name, files, snapshot, cwd, runs, resolved, slice=slice_, **sizes.of_job)


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


class Prepared(NamedTuple):
    """A run that nothing speaks against sending."""

    run_dir: Path
    recipe: Recipe
    """With its place in it."""
    sizes: Sizes
    is_new: bool


def prepare(loaded: Loaded, profile: Profile) -> Prepared:
    """Check a run before it is sent, and choose its place. Raises ValueError for all that can be known to be wrong."""
    recipe = loaded.recipe
    run_dir = place(loaded, profile)
    sizes = find_sizes(recipe, profile, run_dir)
    run = recipe.run.model_copy(update={"name": run_dir.name, "root": str(run_dir.parent)})
    # Where the job will look for runs by name.
    check_paths(recipe.model_copy(update={"run": run}), profile.scratch)
    is_new = not run_dir.exists()
    if not is_new:
        check_existing(run_dir, recipe)
    check_slurm()
    # That the run is new has been seen here; in the job its directory is there.
    resume = "auto" if recipe.resume == "never" else recipe.resume
    return Prepared(run_dir, recipe.model_copy(update={"run": run, "resume": resume}), sizes, is_new)


def submit(
    prepared: Prepared,
    cluster: str,
    profile: Profile,
    supervisor: str = Submission.supervisor,
    mark: str | None = None,
) -> str:
    """Send a prepared run to Slurm; returns the id of its job. Raises SlurmError, with nothing left behind.

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
        job_id = send(run_dir, recipe, cluster, profile, snapshot, Path.cwd(), supervisor)
    except Withdrawn:
        raise
    except BaseException:
        if is_new:
            shutil.rmtree(run_dir, ignore_errors=True)
        for file, content in copies.items():
            if file.read_bytes() != content:
                write_atomic(file, content)
        raise
    if profile.run_root:
        remember_root(run_dir.parent)
    return job_id
