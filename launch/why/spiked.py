"""Where a run's loss jumped, rose for good or was no number, and what that came from."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from launch.why.cause import Cause
from launch.why.facts import Facts
from launch.why.jumps import first_jump, lasting_rise
from launch.why.lines import Line, training_lines
from launch.why.mends import anew, with_changes
from launch.why.steps import checkpoint_before, look_at, plan_of, positions, shipped, turns_near
from recipes.plan import Plan
from recipes.text import show, shown

EXPLODED = 3.0
"""Times the loss of guessing, in the first lines: a first step without a warm-up overshoots by half of it."""
RAISED = 2.0
"""Times the recipe's learning rate, from which on that is what is blamed."""
GRADIENT = 5.0
"""Times the median of the lines before, from which on a gradient says that the next loss would have jumped."""
BRIEF = 3
"""Lines within which a loss is back where images are to blame, not weights; and in which it jumps after its cause."""
SKIPPED = 0.05
"""Of the steps, that fp16 left out: a healthy scaler tries a larger scale each 2,000 steps, and fails at that one."""


class Event(NamedTuple):
    """What happened to the loss."""

    first: int
    """Steps (counted from 1) between which it happened."""
    last: int
    before: float
    after: float
    """Loss, inf where it is no number."""
    back: int | None
    """Lines of the log until it was as before; None: it never was."""
    lines: Sequence[Line]
    """Those before."""
    at: Line | None = None
    """The one in which it shows."""
    slowly: bool = False


def find(facts: Facts) -> list[Cause]:
    plan = plan_of(facts)
    if facts.recipe is None or plan is None:
        return []
    lines = training_lines(facts.metrics)
    event = _event(facts, plan, lines)
    return [] if event is None else [_cause(facts, plan, event)]


def _event(facts: Facts, plan: Plan, lines: Sequence[Line]) -> Event | None:
    losses = [math.inf if (loss := line.value("train/loss")) is None else loss for line in lines]
    images = [float((line.step - line.begin) * plan.batch_size) for line in lines]
    top = _top(facts, losses)
    last = _no_number_since(facts)
    for line, loss in zip(lines[:BRIEF], losses, strict=False):
        if loss > EXPLODED * top:
            return Event(line.begin + 1, line.step, top, loss, None, [], line)
    excused = [_starts_again(plan, line) for line in lines]
    if lines and (jump := first_jump(losses, images, top, excused)):
        line = lines[jump.place]
        return Event(line.begin + 1, line.step, jump.usual, losses[jump.place], jump.back, lines[: jump.place], line)
    if lines and not any(excused) and (rise := lasting_rise(losses, images, top)):
        place = rise.place
        return Event(
            lines[place].step, last or lines[-1].step, rise.low, rise.high, None, lines[: place + 1], slowly=True
        )
    if last:
        return Event(last, last, losses[-1] if losses else math.nan, math.inf, None, lines)
    return None


def _top(facts: Facts, losses: Sequence[float]) -> float:
    """The loss of a network that knows nothing: of guessing where that is known, else that of the beginning."""
    assert facts.recipe is not None
    classes = len(facts.evaluation.get("classes") or ()) or facts.recipe.model.num_classes
    classes = classes or facts.recipe.data.classes_stated()
    plain = facts.recipe.loss == "cross_entropy" and not facts.recipe.plugins.loss and not facts.recipe.distill
    if classes and classes > 1 and plain:
        return math.log(classes)
    first = [loss for loss in losses[:BRIEF] if math.isfinite(loss)]
    return max(statistics.median(first), 1e-9) if first else 1.0


def _starts_again(plan: Plan, line: Line) -> bool:
    """Whether the learning rate jumps up, or more layers train, in the steps of a line or just before."""
    length = line.step - line.begin
    restarts = (step for step, what in plan.turns() if what.startswith("restart"))
    begins = (math.ceil(epoch * plan.steps_per_epoch) for epoch in plan.recipe.model.unfreeze or ())
    return any(line.begin - 2 * length <= step < line.step for step in (*restarts, *begins))


def _no_number_since(facts: Facts) -> int | None:
    """The step (counted from 1) from which on the loss, or the weights, were no numbers."""
    if facts.row["failure"] != "nan":
        return None
    found = re.search(r"not finite (?:since|after) step (\d+)", str(facts.row["reason"]))
    return int(found[1]) if found else None


def _cause(facts: Facts, plan: Plan, event: Event) -> Cause:
    name, blamed, command = _blame(facts, plan, event)
    told = _told(facts, event)
    since = _no_number_since(facts)
    ended = since is not None and math.isfinite(event.after)
    weight = 0.5 if event.back is not None else 0.9
    # Of what the run failed of it is the reason where it showed before.
    weight = 1.1 if since and (ended or _gradient(event) >= GRADIENT) else weight
    return Cause(
        "spiked",
        name,
        f"{told}{f', and is no number since step {since}' if ended else ''}: {blamed}",
        (_figures(plan, event), _place(plan, event), *_skips(event)),
        command,
        weight,
    )


def _told(facts: Facts, event: Event) -> str:
    if not math.isfinite(event.after):
        what = "the weights are" if "weights" in str(facts.row["reason"]) else "the loss is"
        return f"{what} no number since step {event.last}"
    steps = f"in step {event.last}" if event.first == event.last else f"in steps {event.first} to {event.last}"
    if event.slowly:
        return f"the loss rises since step {event.first}, from {event.before:.3g} to {event.after:.3g}"
    back = f", and was back {event.back} lines later" if event.back and event.back > 1 else ", and was back at once"
    return f"the loss jumped from {event.before:.3g} to {event.after:.3g} {steps}{back if event.back else ''}"


def _figures(plan: Plan, event: Event) -> str:
    norms = [norm for line in event.lines[-20:] if (norm := line.value("grad_norm")) is not None]
    lr = plan.hyper(min(event.first, plan.end_step) - 1).lr
    at = event.at and event.at.value("grad_norm")
    gradient = f"grad_norm {statistics.median(norms):.3g} before it (last {norms[-1]:.3g})" if norms else "grad_norm ?"
    turned = "; ".join([] if event.slowly else turns_near(plan, event.first, event.last)) or f"peak {plan.lr:g}"
    then = f", {at:.3g} at step {event.last}" if at else ""
    return f"metrics.jsonl: {gradient}{then}; lr {lr:g} at step {event.first} ({turned})"


def _place(plan: Plan, event: Event) -> str:
    last = min(event.last, plan.end_step)
    return f"epoch {plan.epoch(last):.2f}; the steps' images: {positions(plan, min(event.first, last), last)}"


def _skips(event: Event) -> list[str]:
    skipped = event.lines[-1].value("skipped_steps") if event.lines else None
    if skipped is None:
        return []
    return [f"metrics.jsonl: fp16 left out {skipped:.0f} steps, loss_scale {event.lines[-1].value('loss_scale'):g}"]


def _gradient(event: Event) -> float:
    """The last gradient's norm in those of the lines before it."""
    norms = [norm for line in event.lines[-20:] if (norm := line.value("grad_norm"))]
    return norms[-1] / statistics.median(norms[:-1]) if len(norms) > 3 else 1.0


def _blame(facts: Facts, plan: Plan, event: Event) -> tuple[str, str, str]:
    """Name of the cause, what it is in words, and the command that mends it."""
    assert facts.recipe is not None
    if resumed := _resumed(facts, event):
        return "resumed", resumed[0], _from_before(facts, event, *resumed[1])
    if facts.recipe.precision != "no" and _skips_too_much(event):
        return "fp16", "fp16 has too small a range for these gradients", _from_before(facts, event, "precision=bf16")
    if raised := _raised(facts, plan):
        text, change = raised
        return "learning_rate", text, _from_before(facts, event, change)
    if event.back is not None and event.back <= BRIEF and _gradient(event) < GRADIENT:
        return (
            "bad_batch",
            "the weights were well before and after, so look at its images",
            look_at(facts, event.first, event.last),
        )
    if not event.slowly and (turned := [turn for turn in turns_near(plan, event.first, event.last) if _is_high(turn)]):
        return "learning_rate", f"the schedule is at its height ({turned[-1]})", _calmer(facts, plan, event)
    if event.slowly or event.first <= plan.steps_per_epoch * max(1.0, plan.recipe.epochs / 10):
        return "learning_rate", "its learning rate is more than the network bears", _calmer(facts, plan, event)
    if not math.isfinite(event.after) and _gradient(event) < GRADIENT:
        return (
            "no_number",
            "nothing in the log announced it, so look at its images",
            look_at(facts, event.first, event.last),
        )
    return "gradient", "a gradient too large for one step", _calmer(facts, plan, event)


def _resumed(facts: Facts, event: Event) -> tuple[str, list[str]] | None:
    """What was changed where an attempt began in these steps, in words, and the words that put it back."""
    attempts = facts.provenance.get("attempts") or []
    for number, (before, attempt) in enumerate(itertools.pairwise(attempts), 2):
        begun = attempt.get("first_step") or 0
        if not event.first - 1 - BRIEF * max(1, event.last - event.first) <= begun < event.last:
            continue
        changed = attempt.get("changed") or {}
        told = [_told_change(key, change) for key, change in changed.items()]
        shas = [str(one.get("git_sha"))[:10] for one in (before, attempt)]
        told += [f"another version of the program ({shas[0]} before, {shas[1]} now)"] if shas[0] != shas[1] else []
        if told:
            # A run may be made longer without harm.
            pairs = [(key, pair[0]) for key, pair in changed.items() if isinstance(pair, list) and key != "epochs"]
            back = [f"{key}={shown(before)}" for key, before in pairs]
            return f"attempt {number} went on at step {begun} with {', '.join(told[:3])}", back
    return None


def _is_high(turn: str) -> bool:
    return turn.startswith(("peak", "end of warm-up", "restart"))


def _told_change(key: str, change: object) -> str:
    if isinstance(change, list) and len(change) == 2:
        return f"{key} {show(change[0])} -> {show(change[1])}"
    return f"{key} {show(change)}"


def _skips_too_much(event: Event) -> bool:
    if not event.lines:
        return False
    skipped, scale = (event.lines[-1].value(key) for key in ("skipped_steps", "loss_scale"))
    return skipped is not None and (skipped > max(3.0, SKIPPED * event.lines[-1].step) or (scale or 1.0) < 1.0)


def _raised(facts: Facts, plan: Plan) -> tuple[str, str] | None:
    """How the learning rate is higher than the recipe's, and the change that puts it back."""
    assert facts.recipe is not None
    before = shipped(facts.recipe)
    if before is None or before.optimizer.name != facts.recipe.optimizer.name:
        return None
    scale = plan.batch_size / before.batch_size
    ratio = plan.lr / (before.optimizer.lr * (scale if before.optimizer.lr_for_batch_size else 1.0))
    if ratio < RAISED:
        return None
    return (
        f"the learning rate, {plan.lr:g}, is {ratio:.3g} times the recipe's for this batch size",
        f"optimizer.lr={before.optimizer.lr:g}",
    )


def _calmer(facts: Facts, plan: Plan, event: Event) -> str:
    """Clipping where there is none; in the first epochs of a schedule without a warm-up one; else half the rate."""
    recipe = plan.recipe
    warm = getattr(recipe.schedule, "warmup_epochs", None)
    if warm == 0 and event.first <= 2 * plan.steps_per_epoch and recipe.epochs > 2:
        return anew(facts, f"schedule.warmup_epochs={max(1, round(min(5, recipe.epochs / 10)))}")
    norms = [norm for line in event.lines if (norm := line.value("grad_norm"))]
    if norms and not (recipe.grad_clip_norm or recipe.grad_clip_value or recipe.grad_clip_adaptive):
        return _from_before(facts, event, f"grad_clip_norm={2 * statistics.median(norms):.2g}")
    return _from_before(facts, event, f"optimizer.lr={recipe.optimizer.lr / 2:g}")


def _from_before(facts: Facts, event: Event, *changes: str) -> str:
    """Go on from a checkpoint of before, beside the run where it has gone on since."""
    before = checkpoint_before(facts, event.first - 1)
    if before is None:
        return anew(facts, *changes)
    newest = checkpoint_before(facts, 10**15)
    if newest == before and changes:
        return with_changes(facts, *changes)
    return anew(facts, *changes, f"resume={facts.run_dir}/checkpoints/step-{before:08d}")
