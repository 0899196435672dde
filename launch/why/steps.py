"""What a step of a run was: its place in the schedule and in the data's order, and how it is looked at."""

from __future__ import annotations

import contextlib

from launch.why.facts import Facts
from recipes.library import names
from recipes.load import load
from recipes.plan import Plan, make_plan
from recipes.schema.recipe import Recipe
from resnet.rundir.attempts import step_of_name


def plan_of(facts: Facts) -> Plan | None:
    """The run's arithmetic, as provenance.json tells of its data; None where that does not."""
    told = facts.provenance.get("plan") or {}
    with contextlib.suppress(ValueError, KeyError, TypeError):
        ranks = facts.provenance["world_size"]
        return None if facts.recipe is None else make_plan(
            facts.recipe, told["samples_per_epoch"], ranks, told["micro_batch"]
        )  # fmt: skip
    return None


def shipped(recipe: Recipe) -> Recipe | None:
    """The recipe of its name that comes with the program."""
    return load([f"recipe={recipe.name}"]).recipe if recipe.name in names() else None


def positions(plan: Plan, first: int, last: int) -> str:
    """Which images steps (counted from 1) trained on, in words."""
    begin, end = plan.slot(first - 1, 0)[0], plan.slot(last - 1, plan.slots - 1)[1]
    epochs = (first - 1) // plan.steps_per_epoch + 1, (last - 1) // plan.steps_per_epoch + 1
    if epochs[0] == epochs[1]:
        return f"positions {begin} to {end - 1} in the order of epoch {epochs[0]}"
    return f"position {begin} of epoch {epochs[0]} to {end - 1} of epoch {epochs[1]} in the data's order"


def turns_near(plan: Plan, first: int, last: int) -> list[str]:
    """What the schedule does at these steps (counted from 1) or shortly before: within a fiftieth of the run."""
    near = max(last - first + 1, plan.total_steps // 50)
    return [f"{what} at step {step + 1}" for step, what in plan.turns() if first - near <= step + 1 <= last]


def checkpoint_before(facts: Facts, step: int) -> int | None:
    """The step of the newest checkpoint that had not made more than `step` steps."""
    found = (step_of_name(path.parent.name) for path in facts.run_dir.glob("checkpoints/step-*/manifest.json"))
    return max((one for one in found if one is not None and one <= step), default=None)


def look_at(facts: Facts, first: int, last: int) -> str:
    """The command that shows what steps (counted from 1) trained on: each of them again, or the images of the first."""
    before = checkpoint_before(facts, first - 1)
    if before is None or facts.state in ("running", "queued"):
        return f"resnet look {facts.typed} --step {first}"
    return (
        f"resnet replay {facts.typed} --from step-{before} --to step-{last} --log-every 1 --dump-batches --keep spike"
    )
