"""A run that computes slowly though nothing makes it wait: a device that slows down, a CPU, keys that cost speed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from launch.runs.alike import changes_speed
from launch.why.alike import others
from launch.why.cause import Cause
from launch.why.facts import Facts
from launch.why.lines import Line, median, training_lines
from launch.why.mends import excluding, on_cpu, with_changes
from recipes.changes import differences
from recipes.library import names
from recipes.load import load
from recipes.schema.recipe import Recipe
from recipes.text import plural, shown
from resnet.rundir.files import number

LEAST_LINES = 12
"""Of a log that is asked whether its run has become slower: a third of them has to be more than a hiccup."""
SLOWER = 0.75
"""Of the images a second before: clocks and other users' jobs move a steady run by a tenth, one that shares its GPU or
is throttled loses a quarter to a half."""
ALIKE = 0.7
"""Of the median of runs alike: kinds of nodes, file systems and cold caches make a fifth."""
_SLOW: dict[str, Any] = {
    "precision": "no",
    "channels_last": False,
    "compile": False,
    "deterministic": True,
    "model.sync_batchnorm": True,
}
"""Values of keys that cost speed on a GPU."""


def computing(facts: Facts) -> list[Cause]:
    """Of a run that does not wait."""
    lines = training_lines(facts.metrics)
    slower = _became_slower(facts, lines)
    # Of one that became slower the rest is slower than others' for the same reason.
    found = [slower, _keys(facts), _than_alike(facts, lines[: len(lines) // 3 + 1] if slower else lines)]
    return [cause for cause in found if cause]


def no_gpu(facts: Facts) -> Cause | None:
    """Whether a job with GPUs trains on its CPUs."""
    if facts.job is None or not facts.job.gpus_per_node or not on_cpu(facts) or not facts.provenance.get("devices"):
        return None
    torch = (facts.provenance.get("packages") or {}).get("torch", "?")
    return Cause(
        "slow",
        "no_gpu",
        f"it trains on the CPU, though the job has {facts.job.gpus_per_node} GPUs a node: torch sees none of them",
        (
            f"provenance.json: devices CPU, torch {torch}; job.json: gpus_per_node {facts.job.gpus_per_node}",
            "a torch without CUDA, or one made for a newer driver than the node's, is the usual reason",
        ),
        with_changes(facts, "device=cuda") + ("" if facts.job.held else " --rehearse"),
        0.95,
    )


def _became_slower(facts: Facts, lines: Sequence[Line]) -> Cause | None:
    """Whether it makes fewer images a second than at its beginning, with nothing in the recipe that explains it."""
    recipe = facts.recipe
    if recipe is None or recipe.augment.progressive or recipe.model.unfreeze:
        return None
    timed = [(line, line.rate) for line in lines[1:] if line.rate]
    if len(timed) < LEAST_LINES or _other_ranks(facts):
        return None
    rates = [rate for _, rate in timed]
    third = len(rates) // 3
    before, now = statistics.median(rates[:third]), statistics.median(rates[-third:])
    if now >= SLOWER * before:
        return None
    line = timed[_where(rates)][0]
    attempt = _attempt_begun(facts, line)
    moved = f", where attempt {attempt[0]} began on {attempt[1]}" if attempt else ""
    devices = _devices(facts)
    if len(devices) > 1:
        moved += f": its attempts were on {' and '.join(devices)}"
    return Cause(
        "slow",
        "slower_than_before",
        f"it computes {now / before:.2f} times as fast as at its beginning, since step {line.begin + 1}{moved}",
        (
            f"metrics.jsonl: {before:,.0f} images/s in the first third of the log, {now:,.0f} in the last, waits for "
            "images left out",
            _where_it_runs(facts),
        ),
        _look_at_device(facts),
        1 - now / before,
    )


def _devices(facts: Facts) -> list[str]:
    """Of all attempts, in their order."""
    attempts = facts.provenance.get("attempts") or []
    return [*dict.fromkeys(device for attempt in attempts for device in attempt.get("devices") or [])]


def _other_ranks(facts: Facts) -> bool:
    return len({attempt.get("world_size") for attempt in facts.provenance.get("attempts") or []}) > 1


def _where(rates: Sequence[float]) -> int:
    """The place that parts rates into two halves which are each as even as can be."""

    def spread(values: Sequence[float]) -> float:
        middle = statistics.fmean(values)
        return sum((value - middle) ** 2 for value in values)

    return min(range(2, len(rates) - 2), key=lambda place: spread(rates[:place]) + spread(rates[place:]))


def _attempt_begun(facts: Facts, line: Line) -> tuple[int, str] | None:
    """The attempt that began with the steps of a line, and its host."""
    for number_, attempt in enumerate(facts.provenance.get("attempts") or [], 1):
        if number_ > 1 and line.begin <= (attempt.get("first_step") or 0) <= line.step:
            return number_, str(attempt.get("host"))
    return None


def _where_it_runs(facts: Facts) -> str:
    devices = ", ".join(dict.fromkeys(facts.provenance.get("devices") or [])) or "?"
    return f"provenance.json: {devices} on {facts.provenance.get('host')}; no wait for images or ranks explains it"


def _look_at_device(facts: Facts) -> str:
    host = facts.provenance.get("host")
    if facts.job and facts.job.nodes == 1 and facts.state != "finished":
        return with_changes(facts, excluding(facts, str(host)))
    return "top -b -n 1 | head -20" if on_cpu(facts) else "nvidia-smi -q -d PERFORMANCE,CLOCK,TEMPERATURE"


def _keys(facts: Facts) -> Cause | None:
    """Keys that the recipe has otherwise, and that cost speed on a GPU."""
    if facts.recipe is None or on_cpu(facts):
        return None
    changed = {key: pair for key, pair in _slowed(facts.recipe).items() if key not in facts.swept}
    if not changed:
        return None
    told = ", ".join(f"{key}={shown(now)} (the recipe: {shown(before)})" for key, (before, now) in changed.items())
    rate = median(training_lines(facts.metrics), "images_per_second")
    return Cause(
        "slow",
        "keys",
        f"keys that cost speed are not the recipe's: {told}",
        (
            f"metrics.jsonl: {rate or 0:,.0f} images/s; no wait for images, ranks or network explains more",
            f"recipe.yaml beside {facts.recipe.name} as it comes with the program",
        ),
        with_changes(facts, *(f"{key}={shown(before)}" for key, (before, _) in changed.items())),
        0.3,
    )


def _slowed(recipe: Recipe) -> dict[str, list[Any]]:
    """Keys that have their slow values in a recipe, but not in the shipped one of its name: that one's, and its own."""
    if recipe.name not in names():
        return {}
    changed = differences(load([f"recipe={recipe.name}"]).recipe, recipe)
    return {key: changed[key] for key, slow in _SLOW.items() if key in changed and changed[key][1] == slow}


def _than_alike(facts: Facts, lines: Sequence[Line]) -> Cause | None:
    """Whether runs of the same training on as many of the same devices are much faster."""
    mine = median(lines[1:], "images_per_second")
    if mine is None or len(lines) < 4:
        return None
    same = ("devices", "world_size")
    alike = [
        (rate, other)
        for other in others(facts)
        if (rate := number(other.status.get("images_per_second")))
        and not any(changes_speed(key) for key in other.changes)
        and all(other.provenance.get(key) == facts.provenance.get(key) for key in same)
    ]
    if not alike or mine >= ALIKE * (usual := statistics.median(rate for rate, _ in alike)):
        return None
    nearest = min(alike, key=lambda pair: abs(pair[0] - usual))[1]
    hosts = sorted({str(other.provenance.get("host")) for _, other in alike})
    return Cause(
        "slow",
        "slower_than_others",
        f"it makes {mine / usual:.2f} times the images a second of {plural(len(alike), 'run')} alike on such devices",
        (
            f"metrics.jsonl: {mine:,.0f} images/s here, {usual:,.0f} in {nearest.run_dir.name}",
            f"provenance.json: here on {facts.provenance.get('host')}, the others on {', '.join(hosts[:3])}",
        ),
        _look_at_device(facts),
        1 - mine / usual,
    )
