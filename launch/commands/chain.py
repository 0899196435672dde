"""`launch chain`: what follows a run or a sweep's winner, as jobs of Slurm behind it, or here."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from launch.arguments import add_root, split_changes
from launch.chain.here import run_here
from launch.chain.on_slurm import Place, send
from launch.chain.plan import STEPS, Step, settle
from launch.runs.chain import DAMAGED, being_chained, chain_rows, goes_on
from launch.runs.job_record import Job, read_job
from launch.runs.send import shown
from launch.runs.state import find, rows
from resnet.process.exit_codes import FINISHED
from resnet.rundir.find import find_sweep
from resnet.rundir.sweep.results import folders, sweep_so_far
from slurm.control import controller
from slurm.profile import change_profile, load_profile
from slurm.queue import STARTED, WAITING

TAKES_COMMANDS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "launch chain RUN|SWEEP [cluster=NAME] [slurm.KEY=VALUE ...] -- STEP ... [-- STEP ...] [--root ROOT] [--debug]"
    )
    parser.epilog = (
        f"A STEP is a command that takes one run, without that run: {', '.join(STEPS)}. `prune` and `train KEY=VALUE "
        "...` make a new run, on which the steps behind them act."
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN",
        help="a run, or a sweep for its winner; cluster=NAME, or local for here (default: where it was sent to), and "
        "changes to that profile",
    )
    add_root(parser)


def run(arguments: argparse.Namespace) -> int:
    names, changes = split_changes(arguments.words, arguments.root)
    if len(names) != 1:
        raise ValueError(f"name one run or sweep in front of --, not {' and '.join(names) or 'none'}")
    sweep_dir = find_sweep(names[0], arguments.root)
    subject = sweep_dir or find(names[0], arguments.root).absolute()
    place = _place(subject, changes, sweep_dir is not None)
    with being_chained(subject):
        _refuse_second(subject)
        steps, recipes = settle(subject, sweep_dir is not None, arguments.commands)
        after = _after(subject, sweep_dir is not None, place)
        if place is None:
            return run_here(subject, steps, recipes)
        send(subject, steps, recipes, place, after)
    print(_told(subject, steps, place, after))
    return FINISHED


def _refuse_second(subject: Path) -> None:
    before = chain_rows(subject)
    if goes_on(before):
        raise ValueError(f"a chain of {subject.name} is under way: launch status {shown(subject)}")
    if before and before[0]["state"] == DAMAGED:
        raise ValueError(f"whether a chain of {subject.name} is under way cannot be told: {before[0]['reason']}")


def _place(subject: Path, words: Sequence[str], is_sweep: bool) -> Place | None:
    """Where the steps are to run; None: here."""
    clusters = [word.partition("=")[2] for word in words if word.startswith("cluster=")]
    changes = [word for word in words if not word.startswith("cluster=")]
    if others := [word for word in changes if not word.startswith("slurm.")]:
        raise ValueError(f"{others[0]}: a recipe's keys belong behind a step `train`, as in -- train {others[0]}")
    if len(clusters) > 1:
        raise ValueError(f"give one cluster=NAME, not {' and '.join(clusters)}")
    job = _newest_job(subject, is_sweep)
    if clusters == ["local"] or (not clusters and job is None):
        if changes:
            raise ValueError(f"{changes[0]} changes a cluster's profile: give cluster=NAME too")
        return None
    if clusters:
        return Place(clusters[0], load_profile(clusters[0], changes))
    assert job is not None
    return Place(job.cluster, change_profile(job.known_profile, changes, job.cluster))


def _newest_job(subject: Path, is_sweep: bool) -> Job | None:
    runs = folders(sweep_so_far(subject)) if is_sweep else [subject]
    return max(
        (job for run in runs if (job := read_job(run)) and not job.held), key=lambda job: job.submitted, default=None
    )


def _after(subject: Path, is_sweep: bool, place: Place | None) -> str | None:
    """What the first step waits for, as sbatch's --dependency takes it. Raises ValueError where it would in vain."""
    if is_sweep:
        trials = folders(sweep_so_far(subject))
        found = rows(trials)
        _refuse_held(trial for trial, row in zip(trials, found, strict=True) if not row["over"])
        # A trial that fails keeps none from being the best.
        jobs = {row["job_id"].partition("_")[0] for row in found if row["job_id"] and not row["over"]}
        after = f"afterany:{':'.join(sorted(jobs, key=int))}" if jobs and place else None
        _refuse_elsewhere(_newest_job(subject, is_sweep) if after else None, place)
        if after is None and (active := [row["name"] for row in found if not row["over"]]):
            raise ValueError(f"{subject.name} goes on ({active[0]} is not over), and there is no job to wait for")
        if after is None and not any(row["state"] == "finished" for row in found):
            raise ValueError(f"{subject.name} has no winner: no trial has finished")
        return after
    [row] = rows([subject])
    if row["state"] == "finished":
        return None
    if not row["over"]:
        _refuse_held([subject])
    # Also one that is about to go back to the queue.
    if not (place and row["slurm_state"] in WAITING | STARTED):
        again = "chain it when it is finished" if not row["over"] else f"launch retry {shown(subject)}"
        raise ValueError(f"{subject.name} is not finished (it is {row['state']}), with no job to wait for: {again}")
    _refuse_elsewhere(_newest_job(subject, is_sweep), place)
    return f"afterok:{row['job_id']}"


def _refuse_held(runs: Iterable[Path]) -> None:
    """Raise ValueError where one trains in a job of the user's own, whose end is not the run's."""
    for run in runs:
        if (job := read_job(run)) and job.held:
            raise ValueError(f"{run.name} trains in job {job.job_id}, which you hold: chain it when it is finished")


def _refuse_elsewhere(job: Job | None, place: Place | None) -> None:
    """Raise ValueError where a job cannot be waited for: Slurm's dependencies are within a cluster."""
    if job and job.requests:
        raise ValueError(f"{job.name} was sent to several places, of which any may go on with it: chain it at its end")
    if job and place and controller(job.client) != controller(place.profile.client):
        told = f"{job.name} is on {job.cluster}, and no job on {place.cluster} can wait for it"
        raise ValueError(f"{told}: cluster={job.cluster}, or chain it when it is finished")


def _told(subject: Path, steps: Sequence[Step], place: Place, after: str | None) -> str:
    lines = [f"{subject.name}: {len(steps)} steps on {place.cluster}{f', {after}' if after else ''}"]
    for number, step in enumerate(steps, 1):
        makes = f", makes {shown(Path(step['makes']))}" if step["makes"] else ""
        lines.append(f"  {number}  {step['command']:8}  job {step['job_id']}{makes}")
    name = shown(subject)
    return "\n".join([*lines, f"  follow  launch status {name}", f"  end     launch cancel {name}"])
