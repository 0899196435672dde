"""`launch retry`: send runs, or the failed trials of sweeps, again; each continues from its newest checkpoint."""

from __future__ import annotations

import argparse
import re
import shlex
from functools import partial
from pathlib import Path

from launch.arguments import add_grow, add_root, for_each, growing, split_changes
from launch.runs.attend import train_here
from launch.runs.checks import check_array, refuse_active
from launch.runs.go_in import attended, placed
from launch.runs.held import Holding, held_here
from launch.runs.job_record import Job, known_keys, read_job
from launch.runs.requests import Place
from launch.runs.send import SNAPSHOTS, send, submit_command, told
from launch.runs.state import find
from recipes.load import load_file
from recipes.plugin_files import naming_copies
from recipes.schema.recipe import Recipe
from resnet.process.command_lines import words_to_continue
from resnet.rundir.attempts import end_file, newest_step, read_attempts
from resnet.rundir.find import find_sweep, is_sweep
from resnet.rundir.provenance import read_provenance
from resnet.rundir.status import read_status
from resnet.rundir.sweep.sweep_file import read_sweep
from slurm.code_copy import take_snapshot
from slurm.profile import Profile, change_profile
from slurm.queue import asked_once
from slurm.sbatch import check_slurm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "launch retry RUN [RUN ...] [slurm.KEY=VALUE ...] [--in JOBID] [--exclude-bad-nodes] [--new-code] [--root ROOT]"
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN",
        help="names or directories of runs and sweeps; slurm.KEY=VALUE changes the profile they were sent with",
    )
    parser.add_argument(
        "--in", dest="job", metavar="JOBID", help="train now, on the nodes of a job that you hold (salloc)"
    )
    parser.add_argument("--exclude-bad-nodes", action="store_true", help="stay away from nodes it failed on")
    parser.add_argument("--new-code", action="store_true", help="run the program as it is now, not as it was sent")
    add_grow(parser)
    add_root(parser)


def run(arguments: argparse.Namespace) -> int:
    names, changes = split_changes(arguments.words, arguments.root)
    arguments.changes = [*changes, *growing(arguments)]
    if not names:
        raise ValueError("name the run")
    if others := [word for word in arguments.changes if not word.startswith("slurm.")]:
        raise ValueError(f"{others[0]}: retry cannot change the recipe; launch submit ... run.name={names[0]} can")
    with asked_once():
        return for_each(names, "launch retry", lambda name: _retry(name, arguments))


def _retry(name: str, arguments: argparse.Namespace) -> int:
    if sweep_dir := find_sweep(name, arguments.root):
        if arguments.job:
            raise ValueError(f"{name} is a sweep, whose trials are jobs of their own: leave out --in {arguments.job}")
        return _retry_sweep(sweep_dir, arguments)
    return _retry_run(find(name, arguments.root).absolute(), arguments)


def _retry_sweep(sweep_dir: Path, arguments: argparse.Namespace) -> int:
    """Send, or run here, the trials that failed."""
    from launch.sweep.directory import Place, SweepDir, place_here

    with SweepDir(sweep_dir) as directory:
        todo, _ = directory.missing(failed_only=True)
        if not todo:
            print(f"{sweep_dir.name}: no trial has failed")
            return 0
        jobs = [job for trial in todo if (job := read_job(sweep_dir / trial["name"]))]
        if not jobs:
            from launch.sweep.here import train_here as train_trials

            return train_trials(directory, todo, place_here(directory))
        from launch.sweep.on_slurm import send_trials

        check_slurm()
        profile = change_profile(jobs[-1].known_profile, arguments.changes, jobs[-1].cluster)
        check_array(profile)
        if arguments.exclude_bad_nodes:
            for trial in todo:
                profile = without_bad_nodes(profile, sweep_dir / trial["name"])
        place = Place(jobs[-1].cluster, profile, Path(jobs[-1].folder), directory.content["parallel"])
        send_trials(directory, todo, place, None if arguments.new_code else _snapshot(jobs[-1]))
    return 0


def _retry_run(run_dir: Path, arguments: argparse.Namespace) -> int:
    job = read_job(run_dir)
    if job is None and is_sweep(run_dir.parent) and run_dir.name in _trials(run_dir.parent):
        return _retry_trial_here(run_dir)
    refuse_active(run_dir)
    if read_status(run_dir).get("state") == "finished":
        raise ValueError(f"{run_dir.name} is finished")
    if arguments.job or (job and job.held):
        return _retry_held(run_dir, job, arguments, arguments.job or held_here())
    if job is None and read_status(run_dir).get("state") == "queued":
        raise ValueError(f"{run_dir.name} was to be sent, and never was: {submit_command(run_dir)}")
    if job is None:
        # As `launch local` does, which began it.
        if held := held_here():
            return _retry_held(run_dir, None, arguments, held)
        return _retry_here(run_dir, arguments)
    check_slurm()
    places = _places(run_dir, job, arguments)
    snapshot, recipe = _as_sent(run_dir, job, arguments)
    sent = send(run_dir, recipe, places, snapshot, Path(job.folder))
    without = [(place.profile.exclude, place.cluster) for place in places if place.profile.exclude]
    excluded = " and ".join(f"{nodes} of {cluster}" if len(places) > 1 else str(nodes) for nodes, cluster in without)
    but = f", not on {excluded}" if excluded else ""
    print(f"{run_dir.name} {told(sent)}{but}; it continues from step {newest_step(run_dir)}")
    return 0


def _as_sent(run_dir: Path, job: Job, arguments: argparse.Namespace) -> tuple[Path, Recipe]:
    """The program and the recipe that go on. Lets a trial go on that early stopping has ended."""
    snapshot = (None if arguments.new_code else _snapshot(job)) or take_snapshot(run_dir.parent / SNAPSHOTS)
    sent = run_dir / "slurm" / "recipe.yaml"
    # A chain's `train` has none: what it trains on is not there yet when it is sent.
    recipe = load_file(sent if sent.is_file() else run_dir / "recipe.yaml").recipe
    recipe = naming_copies(recipe, run_dir, only_lost=True)
    if (pruned := end_file(run_dir, "pruned")).exists():
        from launch.sweep.halving import let_go_on

        let_go_on(run_dir.parent, run_dir.name)
        pruned.unlink()
    return snapshot, recipe


def _retry_held(run_dir: Path, job: Job | None, arguments: argparse.Namespace, job_id: str | None) -> int:
    """Continue a run in an allocation: in one that is named and left to itself, or in this one, and shown.

    job_id: of the allocation, if there is one.
    """
    words = [f"recipe={run_dir}", *words_to_continue([], run_dir)]
    if job_id is None:
        raise ValueError(
            f"{run_dir.name} was trained in job {job.job_id if job else ''}, which you held: --in JOBID continues it "
            f"in one that you hold now, and launch submit {shlex.join(words)} cluster=NAME sends it"
        )
    if arguments.exclude_bad_nodes:
        raise ValueError("--exclude-bad-nodes is for a job of the run's own: in one that you hold, slurm.check=true")
    cluster, before = (job.cluster, job.known_profile) if job else (None, None)
    device = load_file(run_dir / "recipe.yaml").recipe.device
    ranks = job.profile.get("ranks_per_node") if job and device != "cuda" else None
    cpu_ranks = ranks or (1 if device == "cpu" else None)
    changes, attended_here = arguments.changes, not arguments.job
    holding = Holding.of(job_id, cluster, changes, attended_here, cpu_ranks=cpu_ranks, before=before)
    if job:
        snapshot, recipe = _as_sent(run_dir, job, arguments)
        folder = Path(job.folder)
    else:
        snapshot, recipe, folder = None, load_file(run_dir / "recipe.yaml").recipe, Path.cwd()
    if snapshot is None or not (snapshot / "slurm" / "held.py").is_file():
        # Of a version that trains in no allocation.
        snapshot = take_snapshot(run_dir.parent / SNAPSHOTS)
    begin = partial(send, run_dir, recipe, [holding.place], snapshot, folder, holding=holding)
    if not arguments.job:
        return attended(holding, run_dir, begin)
    begin()
    print(f"{placed(holding, run_dir)}; it continues from step {newest_step(run_dir)}")
    return 0


def _places(run_dir: Path, job: Job, arguments: argparse.Namespace) -> list[Place]:
    """Where the run was sent to, with the changes."""
    before = [(one["cluster"], known_keys(one["profile"])) for one in job.asked] or [(job.cluster, job.known_profile)]
    places = [Place(cluster, change_profile(known, arguments.changes, cluster)) for cluster, known in before]
    if arguments.exclude_bad_nodes:
        # An attempt names its cluster as its profile is named where the run waited on several, of which each has nodes
        # of its own, perhaps of the same names.
        several = len(places) > 1
        places = [
            place._replace(profile=without_bad_nodes(place.profile, run_dir, place.cluster if several else None))
            for place in places
        ]
    return places


def _trials(sweep_dir: Path) -> list[str]:
    """Names of its trials, of which a chain's own runs beside them are none."""
    return [trial["name"] for trial in read_sweep(sweep_dir)["trials"]]


def _retry_here(run_dir: Path, arguments: argparse.Namespace) -> int:
    """Continue a run that was never sent to Slurm, on as many ranks of this machine as before."""
    if arguments.changes or arguments.exclude_bad_nodes or arguments.new_code:
        what = next(iter(arguments.changes), "--exclude-bad-nodes" if arguments.exclude_bad_nodes else "--new-code")
        raise ValueError(f"{run_dir.name} was never sent to Slurm, so that {what} has no effect: leave it out")
    ranks = (read_provenance(run_dir).get("attempts") or [{}])[-1].get("world_size") or 1
    print(f"{run_dir.name} continues here from step {newest_step(run_dir)}", flush=True)
    return train_here(words_to_continue([f"recipe={run_dir}"], run_dir), ranks)


def _retry_trial_here(run_dir: Path) -> int:
    """Continue one trial of a sweep, also one that early stopping ended."""
    from launch.sweep.directory import SweepDir, place_here
    from launch.sweep.halving import let_go_on
    from launch.sweep.here import await_orphans
    from launch.sweep.here import train_here as train_trials

    with SweepDir(run_dir.parent) as directory:
        await_orphans(directory)
        let_go_on(run_dir.parent, run_dir.name)
        return train_trials(directory, [directory.trial(run_dir.name)], place_here(directory))


def _snapshot(job: Job) -> Path | None:
    """The copy of the program that a job ran, if it is there still."""
    return Path(job.snapshot) if Path(job.snapshot).is_dir() else None


def without_bad_nodes(profile: Profile, run_dir: Path, cluster: str | None = None) -> Profile:
    """The profile without the nodes that attempts of the run failed on. cluster: the attempts there; None: all."""
    failed = [attempt for attempt in read_attempts(run_dir) if attempt.get("node")]
    bad = {attempt["node"] for attempt in failed if cluster in (None, attempt.get("cluster"))}
    known = set(re.findall(r"[^,\[]+(?:\[[^]]*\])?", profile.exclude or ""))
    both = ",".join(sorted(known | bad))
    return profile.model_copy(update={"exclude": both}) if both else profile
