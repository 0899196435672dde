"""What a run spends beside its training: starts, evaluations, checkpoints, and steps that are made again."""

from __future__ import annotations

import math
import shlex
import sys
from collections import Counter
from pathlib import Path

from launch.why.cause import Cause
from launch.why.facts import Facts
from launch.why.mends import longer, with_changes
from recipes.text import format_duration, plural
from resnet.process.ledger import KINDS as ON_DEVICES
from resnet.process.stages import STAGES
from resnet.rundir.files import number
from resnet.rundir.spent import spent
from resnet.rundir.stages import AT_START

LEAST_SECONDS = 10
"""After starts; of a run that has made less nothing is said: it has hardly begun, or is a try."""
SAVES = 0.05
"""Of the time after starts, held up by saves: five times what checkpoint.every=auto allows itself."""
EVALUATIONS = 0.3
"""Of the time after starts, in evaluations: 50,000 images without gradients are 2% of an epoch of ImageNet, and 10,000
of CIFAR a tenth, so that three times that is a choice that costs."""
STARTS, LONG_START = 0.2, 60.0
"""Of the time, until first steps; and the seconds that a start takes at least, on average, to be called long: imports
and joining take some 20 s on an idle file system."""
LOST = 0.1
"""Of the time, in steps that were made again after an attempt ended without a checkpoint."""


def overheads(facts: Facts) -> list[Cause]:
    """What takes more than it should of the time of all attempts; waits in the queue do not count."""
    found = spent(facts.run_dir, facts.state)
    if found is None:
        return []
    seconds = {kind: found.seconds[kind] for kind in ON_DEVICES}
    whole = sum(seconds.values())
    begun = whole - seconds["start"]
    if begun < LEAST_SECONDS:
        return []
    causes = [
        _saves(facts, seconds["save"] / begun),
        _evaluations(facts, seconds["evaluate"] / begun),
        _starts(facts, seconds["start"], whole),
        _lost(facts, seconds["lost"] / whole, found.lost_steps),
    ]
    return [cause for cause in causes if cause]


def _saves(facts: Facts, share: float) -> Cause | None:
    if share < SAVES or facts.recipe is None:
        return None
    every = facts.recipe.checkpoint.every
    return Cause(
        "slow",
        "checkpoint",
        f"checkpoints hold training up {share:.0%} of the time",
        (
            f"stages.json: {share:.0%} of the time in saves; recipe.yaml: checkpoint.every={every}, a save waits until "
            "the one before is written",
        ),
        with_changes(facts, "checkpoint.every=auto"),
        share,
    )


def _evaluations(facts: Facts, share: float) -> Cause | None:
    if share < EVALUATIONS or facts.recipe is None:
        return None
    every = facts.recipe.eval.every
    images = number(facts.evaluation.get("samples"))
    training = (facts.provenance.get("plan") or {}).get("training_images")
    of = f"evaluation.json: {images:,.0f} validation images" if images else ""
    beside = f" beside {training:,} for training (provenance.json)" if images and training else ""
    # So that they take about a tenth.
    rarer = min(max(every + 1, round(every * 9 * share / (1 - share))), math.ceil(facts.recipe.epochs))
    return Cause(
        "slow",
        "evaluation",
        f"evaluations take {share:.0%} of the time, one each {plural(every, 'epoch') if every > 1 else 'epoch'}",
        (f"stages.json: {share:.0%} of the time in evaluations; recipe.yaml: eval.every={every}", of + beside),
        with_changes(facts, f"eval.every={rarer}"),
        share,
    )


def _starts(facts: Facts, seconds: float, whole: float) -> Cause | None:
    attempts = facts.stages
    if not attempts or seconds < STARTS * whole or seconds < LONG_START * len(attempts):
        return None
    stages: Counter[str] = Counter()
    for told in attempts.values():
        stages.update({stage: told["seconds"].get(stage, 0.0) for stage in AT_START})
    (longest, most), *others = stages.most_common()
    also = ", ".join(f"{STAGES[stage]} {value / len(attempts):.0f}" for stage, value in others[:2])
    return Cause(
        "slow",
        "start",
        f"{seconds / whole:.0%} of the time goes to {plural(len(attempts), 'start')}, {seconds / len(attempts):.0f} s "
        f"each: mostly {STAGES[longest]}",
        (
            f"stages.json: a start takes on average {STAGES[longest]} {most / len(attempts):.0f} s, {also}",
            f"{plural(len(attempts), 'attempt')} in {format_duration(whole)} of running",
        ),
        _sooner(facts, longest),
        seconds / whole,
    )


def _sooner(facts: Facts, stage: str) -> str:
    """What shortens a stage of a start, or else makes starts fewer."""
    if stage == "look":
        return shlex.join(["resnet", "prepare", f"recipe={facts.run_dir}", str(_beside_data(facts))])
    if facts.job is None:
        return shlex.join(["resnet", "doctor", f"recipe={facts.run_dir}"])
    profile = facts.job.profile
    if stage in ("python", "imports") and not profile.get("stage_environment"):
        python = str(profile.get("python") or sys.executable)
        environment = python.partition("/bin/")[0] if "/bin/" in python else sys.prefix
        return with_changes(facts, f"slurm.stage_environment={environment}")
    if stage == "join":
        return with_changes(facts, "slurm.check=true")
    return with_changes(facts, longer(facts))


def _beside_data(facts: Facts) -> Path:
    """A folder for shards: where the images are, since the nodes see that."""
    train = facts.recipe.data.paths().get("train") if facts.recipe else None
    return Path(f"{Path(train).parent}-shards") if train else facts.run_dir.parent.absolute() / "shards"


def _lost(facts: Facts, share: float, steps: int) -> Cause | None:
    if share < LOST or facts.recipe is None:
        return None
    every = facts.recipe.checkpoint.every
    return Cause(
        "slow",
        "lost_work",
        f"{share:.0%} of the time went into steps that were made again: attempts ended long after a checkpoint",
        (
            f"stages.json: {plural(steps, 'step')} lost in {plural(len(facts.stages), 'attempt')}",
            f"recipe.yaml: saved each {every}",
        ),
        with_changes(facts, "checkpoint.every=auto"),
        share,
    )
