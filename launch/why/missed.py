"""Why a run is below what its recipe, or another run of it, reached: the most telling of what differs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from launch.why.alike import Other, data_of, others
from launch.why.cause import Cause
from launch.why.facts import Facts
from launch.why.mends import anew, check_data
from launch.why.steps import shipped
from recipes.changes import differences
from recipes.evidence import judge, what_differs
from recipes.text import listed, plural, shown
from resnet.rundir.files import number
from resnet.rundir.provenance import environment_differences

APART = 5.0
"""Percent points below a run of the same recipe: seeds make one, of small data two or three."""
FAR = 0.2
"""Of the epochs, after which something can be said of an accuracy."""
BROKEN = 0.001
"""Of the images, that cannot be read: fewer move no accuracy."""
_ANOTHER = ("model", "data.source", "data.classes", "data.plugin", "plugins", "max_steps", "distill", "loss")
"""Keys (and groups) that make it another experiment, which the recipe's evidence is not held against."""
_PLACE = ("host", "platform", "commit", "python", "threads", "ranks")
"""Of the environment, what tells less than the versions of libraries, the device, the precision and the micro-batch."""


class Result(NamedTuple):
    """What a run has reached."""

    top1: float
    """Percent, of the evaluation that the recipe's evidence speaks of."""
    epoch: float
    step: int
    """Of the last evaluation."""


def result_of(facts: Facts) -> Result | None:
    """None where nothing was evaluated yet."""
    rows = [row for row in facts.metrics if number(row.get("val/top1")) is not None]
    if not rows or facts.recipe is None:
        return None
    values = [float(row["val/top1"]) for row in rows]
    last = facts.recipe.evidence is not None and facts.recipe.evidence.weights == "last"
    return Result(values[-1] if last else max(values), number(rows[-1].get("epoch")) or 0.0, int(rows[-1]["step"]))


def cause(name: str, said: str, evidence: Sequence[str], command: str, weight: float = 0.9) -> Cause:
    """One of this kind."""
    return Cause("wrong", name, said, tuple(filter(None, evidence))[:3], command, weight)


def is_far(facts: Facts, result: Result) -> bool:
    """Whether it has trained long enough for its accuracy to mean something."""
    return facts.recipe is not None and (
        facts.state == "finished" or result.epoch >= max(FAR * facts.recipe.epochs, 1.0)
    )


def changes_of(facts: Facts) -> dict[str, Any]:
    """Keys in which it differs from the recipe that comes with the program, and that may matter."""
    if facts.recipe is None:
        return {}
    return {key: value for key, value in what_differs(facts.recipe).items() if key not in facts.swept}


def is_another(facts: Facts) -> bool:
    """Whether it is another experiment than the one that the recipe's evidence is of."""
    recipe = facts.recipe
    if recipe is None or recipe.max_steps is not None or facts.swept & what_differs(recipe).keys():
        return True
    if recipe.evidence and recipe.evidence.recipe not in (None, recipe.name):
        return True
    return any(key == name or key.startswith(f"{name}.") for key in changes_of(facts) for name in _ANOTHER)


def told(changes: Mapping[str, Any]) -> str:
    """Keys and their values, the first three."""
    return listed([f"{key}={shown(value)}" for key, value in changes.items()], 3)


def put_back(facts: Facts, keys: Sequence[str]) -> list[str]:
    """The words that give keys the values that the recipe has by itself."""
    if facts.recipe is None or (original := shipped(facts.recipe)) is None:
        return []
    before = {key: pair[0] for key, pair in differences(original, facts.recipe).items()}
    return [f"{key}={shown(before[key])}" for key in keys if key in before]


def missed(facts: Facts, result: Result) -> Cause | None:
    """Of a finished run that is below what its recipe is known to reach."""
    recipe = facts.recipe
    if recipe is None or facts.state != "finished" or recipe.evidence is None or recipe.evidence.band is None:
        return None
    low, high = recipe.evidence.band
    if result.top1 >= low or is_another(facts) or recipe.eval.metric != "top1":
        return None
    below = f"top-1 {result.top1:.2f}% is below the {low:g} to {high:g}% that {recipe.name} is known for"
    return _why(facts, below, _good(facts))


def behind(facts: Facts, result: Result) -> Cause | None:
    """Of one that is far below another run of the very same recipe at the same epoch."""
    if not is_far(facts, result):
        return None
    for other in others(facts):
        if set(other.changes) - {"seed"}:
            continue
        curve = [row for row in Facts(other.run_dir, {}).metrics if number(row.get("val/top1")) is not None]
        theirs = [row["val/top1"] for row in curve if row["epoch"] <= result.epoch]
        if theirs and max(theirs) > result.top1 + APART and curve[-1]["epoch"] >= result.epoch:
            below = f"top-1 {result.top1:.2f}% is below the {max(theirs):.2f}% of {other.run_dir.name} at this epoch"
            return _why(facts, below, other)
    return None


def _good(facts: Facts) -> Other | None:
    """The newest finished run of the same recipe that reached what it is known for."""
    for other in others(facts):
        top1, images = number(other.status.get("best")), (other.provenance.get("plan") or {}).get("training_images")
        if other.status.get("state") == "finished" and judge(other.recipe, top1, images).good:
            return other
    return None


def _why(facts: Facts, below: str, good: Other | None) -> Cause:
    for explain in (_changed_recipe, _other_data, _broken_images, _mixed_attempts, _other_versions):
        if found := explain(facts, below, good):
            return found
    compared = "keys of the recipe, number of images, images that could not be read, versions over its attempts"
    more = f", and data, libraries and devices of {good.run_dir.name}, which did well" if good else ""
    return cause(
        "agrees",
        f"what was compared agrees: {compared}{more}",
        (f"metrics.jsonl: {below}", "recipe.yaml beside the recipe as it comes with the program; provenance.json"),
        _diff(facts, good) if good else check_data(facts),
        0.7,
    )


def _diff(facts: Facts, good: Other) -> str:
    return shlex.join(["resnet", "diff", str(good.run_dir), str(facts.run_dir)])


def _changed_recipe(facts: Facts, below: str, _: Other | None) -> Cause | None:
    if not (changes := changes_of(facts)):
        return None
    its, back = "is not as the recipe has it", put_back(facts, [*changes])
    return cause(
        "changed_recipe",
        f"{told(changes)} {its if len(changes) == 1 else 'are not as the recipe has them'}",
        (f"metrics.jsonl: {below}", f"{facts.recipe and facts.recipe.name} has {listed(back, 3)}"),
        anew(facts, *back),
    )


def _other_data(facts: Facts, below: str, good: Other | None) -> Cause | None:
    """How the data is not that of the recipe, or of a run that did well."""
    stated = facts.recipe and facts.recipe.data.train_samples
    images = (facts.provenance.get("plan") or {}).get("training_images")
    if stated and images and stated != images:
        differs, command = f"{images:,} training images, where the recipe was made for {stated:,}", check_data(facts)
    elif good is None:
        return None
    else:
        mine, theirs = data_of(facts), data_of(Facts(good.run_dir, {}))
        unlike = [key for key, value in mine.items() if value != theirs[key] and None not in (value, theirs[key])]
        if not unlike:
            return None
        pairs = ", ".join(f"{key} {mine[key]} (there {theirs[key]})" for key in unlike)
        differs, command = f"the data is not that of {good.run_dir.name}: {pairs}", _diff(facts, good)
    evidence = (f"metrics.jsonl: {below}", "provenance.json, evaluation.json, checkpoints/step-N/manifest.json (data)")
    return cause("data", differs, evidence, command)


def _broken_images(facts: Facts, below: str, _: Other | None) -> Cause | None:
    broken = max((int(row["broken_images"]) for row in facts.metrics if number(row.get("broken_images"))), default=0)
    images = (facts.provenance.get("plan") or {}).get("training_images") or 0
    if broken <= BROKEN * images:
        return None
    return cause(
        "broken_images",
        f"{plural(broken, 'image')} of an epoch could not be read, and others stood in their place",
        (f"metrics.jsonl: {below}", f"metrics.jsonl: broken_images {broken:,} of {images:,}"),
        check_data(facts),
    )


def _mixed_attempts(facts: Facts, below: str, _: Other | None) -> Cause | None:
    """Whether the program or the recipe changed from attempt to attempt."""
    attempts, differs = facts.provenance.get("attempts") or [], ""
    shas = [*dict.fromkeys(str(attempt["git_sha"])[:10] for attempt in attempts if attempt.get("git_sha"))]
    if len(shas) > 1:
        differs = f"its {plural(len(attempts), 'attempt')} ran {len(shas)} versions of the program ({listed(shas, 3)})"
    for place, attempt in enumerate(attempts, 1):
        if changed := attempt.get("changed"):
            step = attempt.get("first_step")
            differs = differs or f"attempt {place} went on at step {step} with {listed([*changed], 3)} changed"
    if not differs:
        return None
    return cause("mixed_code", differs, (f"metrics.jsonl: {below}", "provenance.json: attempts"), anew(facts))


def _other_versions(facts: Facts, below: str, good: Other | None) -> Cause | None:
    """Whether libraries, device, precision or micro-batch are not those of a run that did well."""
    differs = environment_differences(good.provenance, facts.provenance) if good else {}
    chosen = {key: pair for key, pair in differs.items() if key not in _PLACE}
    if good is None or not chosen:
        return None
    pairs = ", ".join(f"{key} {shown(now)} (there {shown(then)})" for key, (then, now) in [*chosen.items()][:3])
    return cause(
        "versions",
        f"recipe and data are those of {good.run_dir.name}, which did well, but here it was {pairs}",
        (f"metrics.jsonl: {below}", "provenance.json of both: packages, devices, plan"),
        _diff(facts, good),
        0.8,
    )
