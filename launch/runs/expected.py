"""What is told before a run is sent: device-hours, attempts, and when it would end."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from launch.runs.course import NONE, Course, Outlook, Span, course_of, outlook
from launch.runs.estimate import runs_alike
from recipes.schema.recipe import Recipe
from recipes.text import format_duration, plural
from resnet.rundir.find import is_run
from resnet.rundir.spent import hours
from resnet.rundir.status import write_status
from slurm.profile import Profile, seconds

REHEARSALS = ".rehearsed"
"""Folder beside the runs that keeps what rehearsals have measured once their directories are gone."""
_KEPT = ("recipe.yaml", "status.json", "provenance.json", "slurm/job.json", "slurm/attempts.jsonl")


class Expected(NamedTuple):
    """What a run would take."""

    by_ranks: tuple[tuple[int, Outlook], ...]
    """On each number of ranks that it may be given, the most first."""
    evaluates: bool
    """Whether evaluations are in it."""
    by: str
    """What has shown it."""

    @property
    def device_hours(self) -> Span:
        found = [outlook.device_seconds.times(1 / 3600) for _, outlook in self.by_ranks]
        return Span(min(one.low for one in found), found[0].likely, max(one.high for one in found))


def expected(
    recipe: Recipe,
    cluster: str,
    profile: Profile,
    root: Path,
    nodes: Sequence[int],
    time: tuple[float, float] | None,
    done: int = 0,
) -> Expected | None:
    """What a run would take by runs below a folder that train the same, else by a rehearsal; None without any.

    nodes: the numbers of them that it may be given. time: limit of an attempt and lead, in seconds. done: steps that it
    has made already.
    Raises ValueError where an attempt would not come to train.
    """
    if (found := _course(recipe, cluster, profile, root)) is None:
        return None
    course, by = found
    steps = course.steps_per_epoch * recipe.epochs
    steps = min(steps, recipe.max_steps) if recipe.max_steps else steps
    steps = max(0.0, steps - done)
    evaluations = math.ceil(steps / course.steps_per_epoch / recipe.eval.every - 1e-9)
    work = Span(*(steps * each + evaluations * course.evaluation for each in course.step))
    ranks = [count * profile.local_ranks for count in sorted(nodes, reverse=True)]
    told = [(count, outlook(work.times(1 / count), course.start, course.wait, count, time)) for count in ranks]
    return Expected(tuple(told), bool(course.evaluation), by)


def attempt_time(profile: Profile) -> tuple[float, float] | None:
    """Limit of an attempt and lead, in seconds; None where the run chooses them as it goes."""
    return None if profile.is_sliced else (float(seconds(profile.time)), float(profile.signal_lead))


def _course(recipe: Recipe, cluster: str, profile: Profile, root: Path) -> tuple[Course, str] | None:
    alike = [*runs_alike(recipe, cluster, profile, root)]
    if course := course_of(alike, recipe.batch_size):
        finished = sum(status.get("state") == "finished" for _, status in alike)
        return course, f"by {plural(len(alike), 'run')}, {finished} finished"
    rehearsed = [*runs_alike(recipe, cluster, profile, root / REHEARSALS)][:1]
    if course := course_of(rehearsed, recipe.batch_size, by_rate=True):
        return course, f"by the few steps of the rehearsal {rehearsed[0][0].name}"
    return None


def lines(found: Expected | None, profile: Profile, start: str) -> Iterator[str]:
    """What a dry run says of it. start: as Slurm expects it, in words or as a date and time."""
    if found is None:
        yield "takes           not known: no run here has trained this on such nodes; --rehearse measures it"
        return
    device, told = "GPU" if profile.gpus_per_node else "rank", found.device_hours
    places = " or ".join(f"{in_span(one.seconds)} on {plural(count, device)}" for count, one in _ends(found))
    without = "" if found.evaluates else "; evaluations come on top"
    yield f"takes           {in_hours(told)} {device}-hours: {places} ({found.by}; with starts{_and(found)}{without})"
    with contextlib.suppress(ValueError):
        yield f"expected end    {_end(datetime.fromisoformat(start), found)}"


def _and(found: Expected) -> str:
    return ", saves and evaluations" if found.evaluates else " and saves"


def _ends(found: Expected) -> list[tuple[int, Outlook]]:
    """On the most ranks and on the least."""
    return [found.by_ranks[0], *(found.by_ranks[-1:] if len(found.by_ranks) > 1 else ())]


def in_hours(span: Span) -> str:
    """Device-hours in words."""
    low, likely, high = (hours(3600 * value) for value in span)
    return f"about {likely}" + (f" ({low} to {high})" if low != high else "")


def in_span(span: Span) -> str:
    """Seconds in words."""
    low, likely, high = map(format_duration, span)
    return likely + (f" ({low} to {high})" if low != high else "")


def _end(start: datetime, found: Expected) -> str:
    (_, most), (_, least) = found.by_ranks[0], found.by_ranks[-1]
    further = max(0, most.attempts - 1)
    likely = start + timedelta(seconds=most.seconds.likely + (most.wait or NONE).likely)
    low = start + timedelta(seconds=most.seconds.low + (most.wait or NONE).low)
    high = start + timedelta(seconds=least.seconds.high + (least.wait or NONE).high)
    told = f"{likely:%Y-%m-%d %H:%M}"
    if f"{low:%d %H:%M}" != f"{high:%d %H:%M}":
        told += f", between {low:%m-%d %H:%M} and {high:%m-%d %H:%M}"
    if most.wait is None:
        return f"{told}, and the queue before {plural(further, 'further start')}, of which nothing is known"
    waits = f", the queue before {plural(further, 'further start')} with it: {in_span(most.wait)}" if further else ""
    return f"{told}{waits}"


def keep_rehearsal(run_dir: Path, images_per_second: float | None) -> None:
    """Keep what a rehearsal has measured, for dry runs to come, in the place of what one of its name has."""
    kept = run_dir.parent / REHEARSALS / run_dir.name
    if not images_per_second or not is_run(run_dir):
        return
    shutil.rmtree(kept, ignore_errors=True)
    for name in (*_KEPT, *(str(file.relative_to(run_dir)) for file in run_dir.glob("logs/attempt-*/stages.json"))):
        (kept / name).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(run_dir / name, kept / name)
    write_status(kept, images_per_second=images_per_second)
