"""`launch retry`: send a run to Slurm again, to go on from its newest checkpoint."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from launch.jobs import SNAPSHOTS, active_job, read_job, send, shown
from recipes.load import load_file
from recipes.rundir import find_run, read_status
from slurm.batch import newest_step, read_attempts
from slurm.profile import Profile, change_profile
from slurm.sbatch import check_slurm
from slurm.snapshot import take_snapshot


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "launch retry RUN [slurm.KEY=VALUE ...] [--exclude-bad-nodes] [--new-code] [--root ROOT]"
    parser.add_argument("run", metavar="RUN", help="a run's name under --root, or its directory")
    parser.add_argument("words", nargs="*", metavar="slurm.KEY=VALUE", help="changes to the profile it was sent with")
    parser.add_argument("--exclude-bad-nodes", action="store_true", help="stay away from nodes it failed on")
    parser.add_argument("--new-code", action="store_true", help="run the program as it is now, not as it was sent")
    parser.add_argument("--root", default="runs", help="folder of the runs (runs)")


def run(arguments: argparse.Namespace) -> None:
    run_dir = find_run(arguments.run, arguments.root).absolute()
    job = read_job(run_dir)
    if job is None:
        raise ValueError(f"{run_dir.name} was never sent to Slurm: launch submit recipe={shown(run_dir)} cluster=NAME")
    if active := active_job(run_dir):
        raise ValueError(f"{run_dir.name} is in the queue: job {active[0]} ({active[1].lower()})")
    if read_status(run_dir).get("state") == "finished":
        raise ValueError(f"{run_dir.name} is finished")
    check_slurm()
    others = [word for word in arguments.words if not word.startswith("slurm.")]
    if others:
        raise ValueError(
            f"{others[0]}: what is trained stays as it is; launch submit ... run.name={run_dir.name} changes it"
        )
    profile = change_profile(job.profile, arguments.words, job.cluster)
    if arguments.exclude_bad_nodes:
        profile = without_bad_nodes(profile, run_dir)
    snapshot = Path(job.snapshot)
    if arguments.new_code or not snapshot.is_dir():
        snapshot = take_snapshot(run_dir.parent / SNAPSHOTS)
    recipe = load_file(run_dir / "slurm" / "recipe.yaml").recipe
    job_id = send(run_dir, recipe, job.cluster, profile, snapshot, Path(job.folder))
    excluded = f", not on {profile.exclude}" if profile.exclude else ""
    print(f"{run_dir.name} is job {job_id} on {job.cluster}{excluded}; it goes on from step {newest_step(run_dir)}")


def without_bad_nodes(profile: Profile, run_dir: Path) -> Profile:
    """The profile without the nodes that attempts of the run failed on."""
    bad = {attempt["node"] for attempt in read_attempts(run_dir) if attempt.get("node")}
    known = set(re.findall(r"[^,\[]+(?:\[[^]]*\])?", profile.exclude or ""))
    both = ",".join(sorted(known | bad))
    return profile.model_copy(update={"exclude": both}) if both else profile
