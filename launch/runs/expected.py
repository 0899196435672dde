"""What is told before a run is sent: device-hours, attempts, and when it would end."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from launch.runs.alike import runs_alike
from launch.runs.course import NONE, Course, Limit, Outlook, Span, course_of, outlook
from recipes.schema.recipe import Recipe
from recipes.text import format_duration, plural
from resnet.rundir.find import is_run
from resnet.rundir.spent import hours
from resnet.rundir.status import write_status
from slurm.profile import Profile, seconds
from slurm.slices import Slice

REHEARSALS = ".rehearsed"
"""Folder beside the runs that keeps what rehearsals have measured once their directories are gone."""
_KEPT = ("recipe.yaml", "status.json", "provenance.json", "slurm/job.json", "slurm/attempts.jsonl")


UNKNOWN = "not known: no run here has trained this on such nodes; --rehearse measures it"

NOT_COUNTED = "what is idle of its nodes not counted"


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
    limit: Limit | None,
    done: int = 0,
) -> Expected | None:
    """What a run would take by runs below a folder that train the same, else by a rehearsal; None without any.

    nodes: the numbers of them that it may be given. limit: None: an attempt is without end. done: steps that it has
    made already. Raises ValueError where an attempt would not come to train.
    """
    known = find_course(recipe, cluster, profile, root)
    return known and by_course(known, recipe, profile, nodes, limit, done)


def by_course(
    known: tuple[Course, str],
    recipe: Recipe,
    profile: Profile,
    nodes: Sequence[int],
    limit: Limit | None,
    done: int = 0,
) -> Expected:
    """What a run would take, by a course and by what has shown it. The rest as of `expected`."""
    course, by = known
    steps = course.steps_per_epoch * recipe.epochs
    steps = min(steps, recipe.max_steps) if recipe.max_steps else steps
    steps = max(0.0, steps - done)
    evaluations = math.ceil(steps / course.steps_per_epoch / recipe.eval.every - 1e-9)
    work = Span(*(steps * each + evaluations * course.evaluation for each in course.step))
    ranks = [count * profile.local_ranks for count in sorted(nodes, reverse=True)]
    told = [(count, outlook(work.times(1 / count), course.start, course.wait, count, limit)) for count in ranks]
    return Expected(tuple(told), bool(course.evaluation), by)


def limit_of(profile: Profile, slice: Slice | None = None) -> Limit | None:
    """Of an attempt; None where the run chooses it as it goes. slice: that it asks for, with slurm.time=auto."""
    if slice:
        return Limit(60.0 * slice.least, 60.0 * slice.most, slice.lead)
    limit = None if profile.is_sliced else float(seconds(profile.time))
    return None if limit is None else Limit(limit, limit, profile.signal_lead)


def find_course(recipe: Recipe, cluster: str, profile: Profile, root: Path) -> tuple[Course, str] | None:
    """What runs below a folder have shown that train the same, else a rehearsal, and by which; None without any."""
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
        yield f"takes           {UNKNOWN}"
        return
    yield f"takes           {takes(found, profile)}"
    with contextlib.suppress(ValueError):
        yield f"expected end    {_end(datetime.fromisoformat(start), found)}"


def takes(found: Expected, profile: Profile) -> str:
    """Device-hours and time, in words."""
    device = device_of(profile)
    places = " or ".join(f"{in_span(one.seconds)} on {plural(count, device)}" for count, one in _ends(found))
    parts = "with starts, saves and evaluations" if found.evaluates else "with starts; evaluations come on top"
    idle = f"; {NOT_COUNTED}" if leaves_idle(profile) else ""
    return f"{in_hours(found.device_hours)} {device}-hours: {places} ({found.by}; {parts}{idle})"


def leaves_idle(profile: Profile) -> bool:
    """Whether a run is given more than its ranks are on."""
    return bool(profile.spare_nodes or profile.exclusive)


def device_of(profile: Profile) -> str:
    """What its hours are of."""
    return "GPU" if profile.gpus_per_node else "rank"


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
    likely = start + timedelta(seconds=most.seconds.likely + (most.wait or NONE).likely)
    low = start + timedelta(seconds=most.seconds.low + (most.wait or NONE).low)
    high = start + timedelta(seconds=least.seconds.high + (least.wait or NONE).high)
    told = f"{likely:%Y-%m-%d %H:%M}"
    if f"{low:%d %H:%M}" != f"{high:%d %H:%M}":
        told += f", between {low:%m-%d %H:%M} and {high:%m-%d %H:%M}"
    further = _further(most.fewest - 1, most.attempts - 1)
    if most.wait is None:
        return f"{told}, and the queue before {further}, of which nothing is known"
    waits = f", the queue before {further} with it: {in_span(most.wait)}" if most.attempts > 1 else ""
    return f"{told}{waits}"


def _further(least: int, most: int) -> str:
    between = f"{max(0, least)} to " if least < most else ""
    return f"{between}{plural(most, 'further start')}"


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
