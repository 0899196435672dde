"""`resnet diff`: what matters of how two runs, or two recipes, differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recipes.changes import differences
from recipes.schema.recipe import Recipe
from recipes.text import show
from resnet.checkpoint.commit import MANIFEST, newest_first
from resnet.rundir.evaluation import read_evaluation
from resnet.rundir.files import read_json
from resnet.rundir.metrics_log import INPUT_DIGEST, SLOW_RANKS, read_metrics
from resnet.rundir.provenance import environment_differences, read_provenance
from resnet.rundir.state import true_status

CLOCK = (
    *("time", "images_per_second", "images_per_second_per_device", "data_wait", "memory_gb"),
    *("slowest_rank", "slowest_ratio", "slowest_by", "network_wait", SLOW_RANKS),
)
"""Keys of the log that two equal runs need not share."""
FAR = 0.01
"""Relative difference of two losses that is more than rounding makes in the first steps."""

Pairs = dict[str, tuple[Any, Any]]
"""By name: the first one's value and the other's, where they differ."""


class Parting(NamedTuple):
    """Where two logs part."""

    step: int
    """Steps done in the first line that differs."""
    keys: Pairs
    """What differs in it."""
    far_step: int | None = None
    """The first line whose losses are more than `FAR` apart; None: there is none."""
    same_lines: int = 0
    """Lines before it that both have, all equal."""
    same_images: bool | None = None
    """Whether the training images behind that line are the same; None: the lines do not say."""


class Difference(NamedTuple):
    """How two runs or recipes differ; empty groups: not at all there."""

    names: tuple[str, str]
    recipe: Pairs
    """By dotted key."""
    environment: Pairs
    """Versions, commit, host, devices, ranks, threads."""
    data: Pairs
    results: Pairs
    """What both reached, differing or not."""
    parting: Parting | None
    """Where the logs part; None: nowhere in the lines that both have."""
    common_lines: int
    """Lines of the log of the same step that both have."""


def recipe_differences(one: Recipe, other: Recipe) -> Pairs:
    """Keys that define the training and whose values differ; names, places and tracking are left out."""
    return {key: (before, now) for key, (before, now) in differences(one, other).items()}


def parting_of(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> Parting | None:
    """The first line, of those of the same step that both logs have, in which they differ; clocks do not count."""
    first, second = ({line_of(row): row for row in rows} for rows in (one, other))
    begins = [_begins_of(rows) for rows in (one, other)]
    found, same = None, 0
    for line in first:
        if line not in second:
            continue
        pairs, digests = row_differences(first[line], second[line]), _digests(first[line], second[line])
        if begins[0][line] != begins[1][line]:
            # They are of other steps.
            digests = None
            pairs.pop(INPUT_DIGEST, None)
        if pairs and found is None:
            same_images = None if digests is None else digests[0] == digests[1]
            found = Parting(line[0], pairs, same_lines=same, same_images=same_images)
        if found is not None and is_far(first[line], second[line]):
            return found._replace(far_step=line[0])
        same += not pairs
    return found


def _begins_of(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[int, str], int | None]:
    """After which step the images begin that a line is about; None: the first that is there."""
    found, since = {}, None
    for row in rows:
        found[line_of(row)] = since
        since = row["step"] if line_of(row)[1] == "train" else since
    return found


def line_of(row: Mapping[str, Any]) -> tuple[int, str]:
    """What a line of the log is about: steps done, and train, val or test."""
    return row["step"], next((what for what in ("val", "test") if f"{what}/loss" in row), "train")


def row_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> Pairs:
    """Keys of two lines that differ; clocks do not count, nor a digest that an older version did not make."""
    ignored = CLOCK if _digests(one, other) else (*CLOCK, INPUT_DIGEST)
    keys = [key for key in {**one, **other} if key not in ignored and one.get(key) != other.get(key)]
    return {key: (one.get(key), other.get(key)) for key in keys}


def _digests(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[int, int] | None:
    """Those of two lines; None where not both have one."""
    return (one[INPUT_DIGEST], other[INPUT_DIGEST]) if INPUT_DIGEST in one and INPUT_DIGEST in other else None


def is_far(one: Mapping[str, Any], other: Mapping[str, Any], share: float = FAR) -> bool:
    """Whether two lines' losses are further apart than `share` of the first."""
    pairs = [(one.get(key), other.get(key)) for key in ("train/loss", "val/loss")]
    told = [(a, b) for a, b in pairs if a is not None and b is not None]
    return any(abs(a - b) > share * abs(a) for a, b in told)


def diff_runs(one: Path, other: Path, recipes: tuple[Recipe, Recipe]) -> Difference:
    """Compare two run directories. Raises ValueError for damaged files."""
    logs = read_metrics(one), read_metrics(other)
    lines = [{line_of(row) for row in rows} for rows in logs]
    return Difference(
        names=(str(one), str(other)),
        recipe=recipe_differences(*recipes),
        environment=environment_differences(read_provenance(one), read_provenance(other)),
        data=_unequal(_data_of(one), _data_of(other)),
        results=_both(_results_of(one, logs[0]), _results_of(other, logs[1])),
        parting=parting_of(*logs),
        common_lines=len(lines[0] & lines[1]),
    )


def diff_recipes(names: tuple[str, str], recipes: tuple[Recipe, Recipe]) -> Difference:
    """Compare two recipes alone."""
    return Difference(names, recipe_differences(*recipes), {}, {}, {}, None, 0)


def _data_of(run_dir: Path) -> dict[str, Any]:
    plan, digest = read_provenance(run_dir).get("plan", {}), None
    if checkpoints := newest_first(run_dir / "checkpoints"):
        # Whether the files are whole is not asked: to read them all takes a while.
        digest = read_json(checkpoints[0] / MANIFEST).get("data") or _noted_in_state(checkpoints[0])
    facts = {"training images": plan.get("training_images"), "labels (digest)": digest}
    return facts | {"validation images": read_evaluation(run_dir).get("samples")}


def _noted_in_state(checkpoint: Path) -> str | None:
    """The data's digest, which manifests of older versions do not have."""
    # Only now: it takes seconds.
    from resnet.checkpoint.snapshot import read_rest

    return read_rest(checkpoint).get("data")


def _results_of(run_dir: Path, log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    status, last = true_status(run_dir), next((row for row in reversed(log) if "val/loss" in row), {})
    speeds = sorted(row["images_per_second"] for row in log if row.get("images_per_second") is not None)
    facts = {"state": status.get("state"), "step": status.get("step"), "best": status.get("best")}
    facts |= {"val/top1": last.get("val/top1"), "val/loss": last.get("val/loss")}
    return facts | {"images_per_second": speeds[len(speeds) // 2] if speeds else None}


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> Pairs:
    return {key: pair for key, pair in _both(one, other).items() if pair[0] != pair[1]}


def _both(one: Mapping[str, Any], other: Mapping[str, Any]) -> Pairs:
    return {key: (one[key], other[key]) for key in one if None not in (one[key], other[key])}


def described(found: Difference) -> list[str]:
    """The differences in about ten lines of text."""
    groups = {"recipe": found.recipe, "environment": found.environment, "data": found.data, "results": found.results}
    lines = [f"{found.names[0]} | {found.names[1]}"]
    are_runs = bool(found.results or found.common_lines)
    for name, pairs in groups.items():
        if not pairs and (are_runs or name == "recipe"):
            lines.append(f"{name:12} the same")
        shown = [f"{key} {_text(a)} | {_text(b)}" if a != b else f"{key} {_text(a)}" for key, (a, b) in pairs.items()]
        lines += _packed(shown, f"{name:12} ")
    if are_runs:
        lines += _packed(told_parting(found.parting, found.common_lines).split("; "), f"{'log':12} ")
    return lines


def told_parting(parting: Parting | None, common: int) -> str:
    """Where two logs part, in words. common: lines that both have."""
    if parting is None:
        return f"the {common} lines that both have are equal" if common else "no line of the same step in both"
    pairs = [(key, values) for key, values in parting.keys.items() if key != INPUT_DIGEST]
    keys = ", ".join(f"{key} {_text(a)} | {_text(b)}" for key, (a, b) in pairs[:3])
    images = {None: "", True: "from the same images", False: "from other images"}[parting.same_images]
    told = ", ".join(filter(None, [keys, images]))
    before = f"; lines before that are equal: {parting.same_lines}" if parting.same_lines else ""
    far = "never" if parting.far_step is None else f"from step {parting.far_step} on"
    return f"parts at step {parting.step}: {told}{before}; losses more than {FAR:.0%} apart: {far}"


def _packed(parts: Sequence[str], head: str, width: int = 110, most: int = 4) -> list[str]:
    """Parts side by side in at most `most` lines; how many are left out is said."""
    lines, line = [], ""
    for number, part in enumerate(parts):
        if line and len(line) + len(part) > width:
            if len(lines) == most - 1:
                lines.append(f"{line}; and {len(parts) - number} more (--json)")
                line = ""
                break
            lines.append(line)
            line = ""
        line += f"; {part}" if line else part
    lines += [line] if line else []
    return [(head if not number else " " * len(head)) + text for number, text in enumerate(lines)]


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else show(value)
