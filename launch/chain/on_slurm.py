"""The steps of a chain as jobs of Slurm, each behind the one before."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from launch.chain.plan import Step
from launch.runs.checks import check_name, check_one_place, check_paths
from launch.runs.job_record import FORMAT, Job
from launch.runs.send import SNAPSHOTS, uninterrupted
from launch.runs.sizes import Sizes, find_sizes
from recipes.schema.recipe import Recipe
from resnet.rundir.chain import TRAIN, job_name, log_of, new_folder, write_chain
from slurm.code_copy import take_snapshot
from slurm.control import ask
from slurm.profile import Profile
from slurm.sbatch import Submission, check_slurm, submit


class Place(NamedTuple):
    """Where the jobs run."""

    cluster: str
    profile: Profile
    """A `train` step takes all of it, the others one rank."""


def send(subject: Path, steps: Sequence[Step], recipes: Sequence[Recipe], place: Place, after: str | None) -> None:
    """Send the steps and note their jobs. after: what the first waits for, as sbatch's --dependency takes it.

    Raises ValueError, with nothing left behind, for what can be known to be wrong, and where Slurm refuses a step.
    """
    check_name(subject)
    check_one_place(place.profile)
    for recipe in recipes:
        check_paths(recipe, place.profile.scratch)
    found = [find_sizes(recipe, place.profile) for recipe in recipes]
    for sizes in found:
        sizes.in_one_job()
    of_runs = iter(found)
    check_slurm()
    snapshot = take_snapshot(subject.parent / SNAPSHOTS)
    folder = new_folder(subject)
    content = {"subject": str(subject), "folder": str(Path.cwd()), "cluster": place.cluster, "steps": steps}
    content["client"] = place.profile.client
    with uninterrupted():
        try:
            for number, step in enumerate(steps, 1):
                sizes = next(of_runs) if step["command"] == TRAIN else None
                submission = _submission(folder, content, number, place, sizes, snapshot, after)
                # Before the job can start, which reads it.
                write_chain(folder, content)
                step["job_id"] = submit(submission)[0]
                after = f"afterok:{step['job_id']}"
            write_chain(folder, content)
        except BaseException:
            for step in steps:
                if step["job_id"]:
                    with contextlib.suppress(ValueError):
                        ask(["scancel", step["job_id"]], client=place.profile.client)
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _submission(
    folder: Path,
    content: dict[str, Any],
    number: int,
    place: Place,
    sizes: Sizes | None,
    snapshot: Path,
    after: str | None,
) -> Submission:
    """sizes: of the run that the step trains, if it does."""
    step, profile, cwd = content["steps"][number - 1], place.profile, Path(content["folder"])
    name = job_name(content, number)
    if sizes:
        step["job"] = {"format": FORMAT, **asdict(Job.to_send(name, place.cluster, profile, snapshot, cwd))}
        profile = profile.on_nodes(sizes.in_one_job())
    else:
        # Commands of `resnet` run in one process.
        one = {"nodes": 1, "spare_nodes": 0, "gpus_per_node": min(1, profile.gpus_per_node), "ranks_per_node": None}
        # Nor do they save, to go on in another slice.
        one |= {"grow": None, "time": profile.fixed_time}
        profile = profile.model_copy(update=one)
    return Submission(
        profile,
        name,
        folder,
        snapshot,
        cwd,
        [Path(step["makes"] or content["subject"])],
        [],
        supervisor="slurm.step",
        after=after,
        log=log_of(folder, content, number),
        step=number,
        **(sizes.of_job if sizes else {}),
    )
