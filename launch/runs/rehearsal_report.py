"""What a rehearsal has shown: seconds by stage, what would go wrong at this size, and what the run would take."""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from launch.runs.course import course_of
from launch.runs.expected import by_course, limit_of, takes
from launch.runs.job_record import read_job
from launch.runs.sizes import find_sizes
from recipes.schema.recipe import Recipe
from recipes.text import format_duration
from resnet.process.check_lines import told as told_by_ranks
from resnet.process.environment import REHEARSED
from resnet.process.stages import STAGES
from resnet.rundir.attempts import read_attempts
from resnet.rundir.stages import read_stages
from resnet.rundir.status import status_or_nothing
from slurm.profile import Profile, seconds

FILES_OF_A_RANK = 64
"""Open files that each process of a run has at most, and one more for each other rank (docs/scale.md)."""
FULL = 0.95
"""Share of a memory from which it is called nearly full."""


class Speed(NamedTuple):
    """That the rehearsal has shown."""

    images_per_second: float
    """Over all ranks."""
    steps_per_epoch: float
    by: str
    """In words."""


class Report(NamedTuple):
    """What is told of a rehearsal."""

    lines: list[str]
    problems: list[str]
    """For which the run itself would fail; empty where it would begin well."""
    images_per_second: float | None = None
    """That the run itself would make, over all ranks."""


class Shown(NamedTuple):
    """What the rehearsal has left in its directory."""

    status: dict[str, Any]
    attempts: list[dict[str, Any]]
    stages: list[dict[str, Any]]
    """Of each attempt; empty for one that did not come to its first step."""
    nodes: dict[str, dict[str, Any]]
    """By node what it has, by the start check."""
    submitted: float
    checkpoint_bytes: int
    free_bytes: int

    @property
    def starts(self) -> int:
        """How many came to a step."""
        return len([record for record in self.stages if record])

    @property
    def checks(self) -> list[dict[str, Any]]:
        """What each start check found."""
        return [attempt["check"] for attempt in self.attempts if attempt.get("check")]


def report_on(run_dir: Path, recipe: Recipe, profile: Profile) -> Report:
    """What a rehearsal that has ended tells. profile: that of the run itself."""
    shown = _shown(run_dir)
    problems, warnings = list(_problems(shown)), list(_warnings(shown, recipe, profile))
    lines = ["", "seconds", *(f"  {name:36} {spent:8.1f}  {note}".rstrip() for name, spent, note in _stages(shown))]
    lines += [f"WRONG  {problem}" for problem in problems] + [f"note   {warning}" for warning in warnings]
    if profile.is_range and shown.attempts:
        # Of those that it may have the run has been given so many.
        profile = profile.on_nodes(len(shown.attempts[0]["nodes"]))
    if speed := _of_all_sizes(_speed(shown), recipe, profile):
        lines += [f"takes  {told}" for told in _takes(run_dir, recipe, profile, shown, speed)]
    if not problems:
        saved = ", saved" if shown.checkpoint_bytes else ""
        again = ", went on from the checkpoint" if shown.starts > 1 else ""
        lines.append(f"{profile.ranks} ranks joined, read, made steps{saved}{again} and left")
    return Report(lines, problems, speed.images_per_second if speed else None)


def _takes(run_dir: Path, recipe: Recipe, profile: Profile, shown: Shown, speed: Speed) -> Iterator[str]:
    """As a dry run tells it by the rehearsal once that is gone."""
    status = shown.status | {"images_per_second": speed.images_per_second}
    if not (course := course_of([(run_dir, status)], recipe.batch_size, by_rate=True)):
        return
    try:
        yield takes(by_course((course, speed.by), recipe, profile, [profile.most_nodes], limit_of(profile)), profile)
    except ValueError as error:
        yield f"not known: {error}"


def _shown(run_dir: Path) -> Shown:
    attempts = read_attempts(run_dir)
    job = read_job(run_dir)
    newest = max((run_dir / "checkpoints").glob("step-*[0-9]"), default=None)
    size = sum(file.stat().st_size for file in newest.iterdir()) if newest else 0
    stages = [read_stages(run_dir, attempt["attempt"]) for attempt in attempts]
    submitted, free = job.submitted if job else 0.0, shutil.disk_usage(run_dir).free
    return Shown(status_or_nothing(run_dir), attempts, stages, _nodes(run_dir), submitted, size, free)


def _nodes(run_dir: Path) -> dict[str, dict[str, Any]]:
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in run_dir.glob("logs/attempt-*/check.log")]
    return {
        row["node"]: row["facts"] for text in texts for row in told_by_ranks(text) if "files" in row.get("facts", {})
    }


def _stages(shown: Shown) -> Iterator[tuple[str, float, str]]:
    """By name the seconds and a note, in the order in which they came."""
    if shown.attempts:
        yield "queue", max(0.0, shown.attempts[0]["start"] - shown.submitted), ""
    again = False
    for attempt, record in zip(shown.attempts, shown.stages, strict=True):
        taken, check = record.get("seconds", {}), attempt.get("check") or {}
        if check:
            yield "start check", check["seconds"], _check_note(check)
        if taken and again:
            whole = record["started"] + sum(taken.values()) - attempt["start"] - check.get("seconds", 0.0)
            yield "second start, one step and save", whole, f"restoring the checkpoint {taken.get('restore', 0):.1f}"
        elif taken:
            again = True
            yield from _first_start(attempt, record, shown)


def _first_start(
    attempt: Mapping[str, Any], record: Mapping[str, Any], shown: Shown
) -> Iterator[tuple[str, float, str]]:
    taken, check = record["seconds"], attempt.get("check") or {}
    begun = record["started"] - attempt["start"] - check.get("seconds", 0.0)
    yield "preparing nodes, starting the ranks", max(0.0, begun), ""
    yield from ((STAGES[stage], taken[stage], _note(stage, record, shown)) for stage in taken)
    if attempt.get("end"):
        yield "leaving", max(0.0, attempt["end"] - record["started"] - sum(taken.values())), ""


def _check_note(check: Mapping[str, Any]) -> str:
    rate = check.get("all_reduce_gbs")
    return f"all-reduce over all ranks {rate:.2g} GB/s" if rate else ""


def _note(stage: str, record: Mapping[str, Any], shown: Shown) -> str:
    if stage == "steps" and record.get("further_images"):
        return f"{record['further_images'] / max(record['seconds']['steps'], 1e-9):,.0f} img/s"
    return f"{shown.checkpoint_bytes / 1e6:.0f} MB" if stage == "save" and shown.checkpoint_bytes else ""


def _problems(shown: Shown) -> Iterator[str]:
    """For which the run itself would fail."""
    status, starts = shown.status, shown.starts
    reason = status.get("reason") or status.get("state")
    if status.get("state") == "failed" or (status.get("state") == "stopped" and reason != REHEARSED):
        yield str(reason)
    elif not starts:
        yield f"the ranks did not come to a first step: {reason}"
    elif (
        starts < sum(not (attempt.get("check") or {}).get("bad") for attempt in shown.attempts)
        and status.get("state") != "finished"
    ):
        yield f"a start of the ranks did not come to a step: {reason}"
    elif starts < 2 and status.get("state") != "finished":
        yield "the job ended before the ranks were started again from their checkpoint"
    yield from (note for check in shown.checks for note in check["notes"] if "cannot read" in note)


def _warnings(shown: Shown, recipe: Recipe, profile: Profile) -> Iterator[str]:
    """What else a person should know before the run itself is sent."""
    first = next((record for record in shown.stages if record), {})
    for check in shown.checks:
        yield from (f"without {node}: {why}" for node, why in check["bad"].items())
        yield from (note for note in check["notes"] if "cannot read" not in note)
    yield from _of_files(shown.nodes, profile)
    yield from _of_memory(first, shown.nodes, profile)
    if not first:
        return
    if shown.starts < 2 and shown.status.get("state") == "finished":
        yield "the training was over in its first start: that it goes on from a checkpoint was not tried"
    if recipe.model.unfreeze:
        yield "model.unfreeze lets more train later on: then a step takes longer than here, which `takes` leaves out"
    yield from _of_time(first, shown, profile)
    needed = (recipe.checkpoint.keep + 2) * shown.checkpoint_bytes
    if needed > shown.free_bytes / 2:
        free = f"{shown.free_bytes / 1e9:.1f} GB are free in run.root"
        yield f"checkpoints will take {needed / 1e9:.1f} GB, and {free} (checkpoint.keep)"


def _of_files(facts: Mapping[str, Mapping[str, Any]], profile: Profile) -> Iterator[str]:
    needed = FILES_OF_A_RANK + profile.ranks
    few = {node: found["files"] for node, found in facts.items() if 0 < found["files"] < needed}
    if few:
        node, files = min(few.items(), key=lambda item: item[1])
        yield f"{node} lets a process open {files} files, and {profile.ranks} ranks need {needed} (ulimit -Hn)"


def _of_memory(first: Mapping[str, Any], facts: Mapping[str, Mapping[str, Any]], profile: Profile) -> Iterator[str]:
    if first.get("device_gb", 0) > FULL * first.get("device_has_gb", float("inf")):
        yield f"rank 0 took {first['device_gb']:.1f} of its GPU's {first['device_has_gb']:.1f} GB"
    least = min((found["memory_gb"] for found in facts.values() if found.get("memory_gb")), default=None)
    taken = first.get("memory_gb", 0.0) * profile.local_ranks
    if least is not None and taken > FULL * least:
        yield f"a node's ranks take {taken:.0f} GB without their data workers, and {least:.0f} GB are free (slurm.mem)"


def _of_time(first: Mapping[str, Any], shown: Shown, profile: Profile) -> Iterator[str]:
    if profile.is_sliced:
        return
    taken, limit, lead = first["seconds"], seconds(profile.time), profile.signal_lead
    images, steps = first.get("further_images") or 0, max(1, first["step"] - first["first_step"] - 1)
    step = taken["steps"] / steps if images else taken.get("step", 0.0)
    # A step under way, the save, the ranks' leave; and what a file system that many write to takes more.
    needed = step + 2 * taken.get("save", 0.0)
    if needed > lead:
        yield f"to save takes {taken.get('save', 0):.0f} s: slurm.signal_lead={lead} is short, give {2 * needed:.0f}"
    start = sum(spent for stage, spent in taken.items() if stage not in ("steps", "save", "end"))
    if start > limit / 4:
        yield f"each attempt of slurm.time={profile.time} spends {format_duration(start)} until its first step"
    if images and (speed := _speed(shown)) and shown.status.get("total_steps"):
        epoch = step * speed.steps_per_epoch
        if epoch > limit - lead - start:
            yield (
                f"an epoch takes about {format_duration(epoch)}, more than an attempt of slurm.time={profile.time} "
                "makes: evaluations come after several attempts"
            )


def _speed(shown: Shown) -> Speed | None:
    """By the steps after the first."""
    first, status = next((record for record in shown.stages if record), {}), shown.status
    images, spent = first.get("further_images"), first.get("seconds", {}).get("steps")
    if not images or not spent or not status.get("total_steps") or not status.get("epochs"):
        return None
    rate = images / spent
    return Speed(rate, status["total_steps"] / status["epochs"], f"by this rehearsal's few steps: {rate:,.0f} img/s")


def _of_all_sizes(speed: Speed | None, recipe: Recipe, profile: Profile) -> Speed | None:
    """The speed that a run has on average whose first images are the smallest: a step takes as its pixels do."""
    if speed is None or not recipe.augment.progressive:
        return speed
    plan, epochs = find_sizes(recipe, profile).plan, recipe.epochs
    if recipe.max_steps:
        epochs = min(epochs, recipe.max_steps / speed.steps_per_epoch)
    sizes = [plan.image_size(epoch * plan.steps_per_epoch) for epoch in range(math.ceil(epochs))]
    rate = speed.images_per_second * sizes[0] ** 2 / statistics.fmean(size**2 for size in sizes)
    by = f"{speed.by} at {sizes[0]} px, {rate:,.0f} by the pixels of all epochs"
    return Speed(rate, speed.steps_per_epoch, by)
