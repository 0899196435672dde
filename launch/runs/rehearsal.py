"""`launch submit --rehearse`: the very job for a few steps, in a directory of its own, followed to its end."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from launch.runs.checks import check_one_place, place, refuse_active
from launch.runs.expected import keep_rehearsal
from launch.runs.job_record import read_job
from launch.runs.rehearsal_report import Report, report_on
from launch.runs.requests import Place
from launch.runs.send import prepare, submit, told, withdraw
from launch.runs.state import rows
from recipes.load import Loaded
from recipes.text import plural
from resnet.process.exit_codes import FAILED, FINISHED, INTERRUPTED
from resnet.rundir.attempts import end_file, read_attempts
from resnet.rundir.stages import described, read_stages
from slurm.profile import Profile, seconds

SUFFIX = "-rehearsal"
MARK = "rehearsal"
"""File in the run's folder `slurm` without which a directory is not taken for a rehearsal's, and not removed."""
LIMIT_SECONDS = 1800
"""Of the job: short, so that it finds a gap in the queue."""
LEAD_SECONDS = 60
LOOK_SECONDS = 3.0


def rehearse(loaded: Loaded, cluster: str, profile: Profile, keep: bool) -> int:
    """Send the job, wait for it, and print what it took and what would go wrong; returns an exit code.

    keep: leave its directory also where all was well. Raises ValueError as a submission does.
    """
    check_one_place(profile)
    run_dir = place(loaded, profile)
    run_dir = run_dir.with_name(run_dir.name + SUFFIX)
    _make_room(run_dir)
    prepared = prepare(_renamed(loaded, run_dir), [Place(cluster, _short(profile))])
    try:
        sent = submit(prepared, [Place(cluster, _short(profile))], supervisor="slurm.rehearsal", mark=MARK)
        ranks = plural(sent[0].ranks, "rank")
        print(f"{run_dir.name} {told(sent)}: {ranks}; Ctrl-C cancels it", flush=True)
        _follow(run_dir)
    except KeyboardInterrupt:
        if (sent := read_job(run_dir)) and not end_file(run_dir, "cancelled").exists():
            withdraw(run_dir, [sent])
        return INTERRUPTED
    report = report_on(run_dir, prepared.recipe, profile)
    print("\n".join(report.lines))
    keep_rehearsal(run_dir, report.images_per_second)
    return _leave(run_dir, report, keep)


def _make_room(run_dir: Path) -> None:
    """Remove an earlier rehearsal. Raises ValueError for anything else of its name, and for one that goes on."""
    if not run_dir.exists():
        return
    if not (run_dir / "slurm" / MARK).exists():
        raise ValueError(f"{run_dir} is there and is no rehearsal: choose another run.name")
    refuse_active(run_dir)
    shutil.rmtree(run_dir)


def _renamed(loaded: Loaded, run_dir: Path) -> Loaded:
    """The same training under another name, told to nobody else."""
    recipe = loaded.recipe
    run = recipe.run.model_copy(update={"name": run_dir.name, "root": str(run_dir.parent)})
    wandb = recipe.wandb.model_copy(update={"mode": "disabled"})
    told = recipe.model_copy(update={"run": run, "wandb": wandb})
    return loaded._replace(recipe=told, origins={**loaded.origins, "run.root": "the rehearsal"})


def _short(profile: Profile) -> Profile:
    limit = min(seconds(profile.fixed_time), LIMIT_SECONDS)
    lead = min(profile.signal_lead, LEAD_SECONDS, limit // 2)
    shorter = {"time": f"0:{limit // 60}:{limit % 60}", "signal_lead": lead, "check": True, "grow": None}
    return profile.model_copy(update=shorter)


def _follow(run_dir: Path) -> None:
    """Wait until the job is over, and say what becomes of it as it does."""
    said: list[str] = []
    while True:
        row = rows([run_dir])[0]
        for line in _news(run_dir, row):
            if line not in said:
                said.append(line)
                print(f"  {time.strftime('%H:%M:%S')}  {line}", flush=True)
        if row["over"]:
            return
        time.sleep(LOOK_SECONDS)


def _news(run_dir: Path, row: dict) -> list[str]:
    """What can be said by now."""
    attempts = read_attempts(run_dir)
    if not attempts:
        return [f"queued{': ' if row['reason'] else ''}{row['reason'] or ''}"] if row["state"] == "queued" else []
    lines = []
    for attempt in attempts:
        number = attempt["attempt"]
        lines.append(f"start {number} on {', '.join(attempt['nodes'])}")
        if at_start := described(read_stages(run_dir, number).get("seconds", {})):
            lines.append(f"start {number}: {at_start}")
    return lines


def _leave(run_dir: Path, report: Report, keep: bool) -> int:
    if report.problems:
        print(f"logs: {run_dir / 'logs'}")
        return FAILED
    if not keep:
        with contextlib.suppress(OSError):
            shutil.rmtree(run_dir)
    return FINISHED
