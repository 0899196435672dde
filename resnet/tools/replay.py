"""`resnet replay`: train some steps of a run again, from its checkpoint, and compare with what the run left."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError

from recipes.changes import differences, refuse_fixed
from recipes.load import load, load_file
from recipes.plan import Plan, make_plan
from recipes.schema.recipe import Recipe
from recipes.text import plural, show
from resnet.build import build_data, build_order
from resnet.checkpoint.commit import CheckpointError, name_of, newest_first, read_manifest, step_of
from resnet.checkpoint.snapshot import read_rest
from resnet.data.order import Order, kind_of
from resnet.data.sources.source import Source
from resnet.run_recipe import with_data
from resnet.run_weights import FINAL
from resnet.rundir.files import to_json, write_atomic
from resnet.rundir.metrics_log import read_metrics
from resnet.rundir.provenance import environment_differences, read_provenance
from resnet.rundir.status import read_status
from resnet.tools import replay_compare as compared
from resnet.tools import replay_run
from resnet.tools.compare import compare_checkpoints
from resnet.tools.difference import FAR, Pairs, Parting, is_far, told_parting
from resnet.tools.look import as_json, draw_seen, look
from resnet.tools.replay_run import Steps

CLOSE = 0.1
"""Two networks this far apart, as a share of the way that training took them, are the same but for rounding."""
_DECODES_OTHERWISE = ("torch", "torchvision", "torchcodec", "nvidia-nvimgcodec-cu12", "pillow", "host", "platform")
_DECODES_OTHERWISE += ("device", "version", "commit")
"""Parts of the environment by which the pixels of images can differ: resizing rounds as the processor does, and a GPU
decodes and does what a policy draws in its own way."""
_ROUNDS_OTHERWISE = (*_DECODES_OTHERWISE, "numpy", "ranks", "threads", "precision")
"""Those by which the last bits of the computation can."""


class Replay(NamedTuple):
    """What came of training steps of a run again."""

    first: int
    last: int
    """Steps done at the beginning and at the end."""
    equal: bool
    """Whether all that was compared is equal to the last bit."""
    close: bool
    """Whether it is equal, or differs as rounding does and the environment is the reason."""
    differences: list[str]
    """What differs of what the run left, in words."""
    first_step: int | None
    """Steps done in the first line of the log that differs; None: they are all equal."""
    environment: Pairs
    """What differs of versions and machine: the run's and today's."""
    notes: list[str]
    """What else the user should know: what was compared, and where to look."""
    rows: list[dict[str, Any]]
    """The lines of the log of the steps trained again."""


def _silent(_: str) -> None:
    pass


def replay(
    run_dir: Path,
    first: int | None = None,
    last: int | None = None,
    *,
    log_every: int | None = None,
    dump_batches: bool = False,
    keep: Path | None = None,
    overrides: Sequence[str] = (),
    tell: Callable[[str], None] = _silent,
) -> Replay:
    """Train the steps after checkpoint `first` up to `last` again, in a scratch folder, and compare.

    first: a checkpoint's step; None: the earliest that is there. last: None: the next checkpoint's, else the last that
    the run logged. log_every: for a finer log; None: the run's. keep: folder to leave the scratch run in, and with
    dump_batches a picture and a table of each step's images. overrides: as `data.train=...` where the data lies
    elsewhere. tell: is given a line as each part begins. The run is only read.

    Raises ValueError for steps that the run does not have, a checkpoint or data that cannot be used, and where training
    fails.
    """
    if dump_batches and keep is None:
        raise ValueError("--dump-batches needs a folder: give --keep FOLDER")
    steps = steps_of(run_dir, first, last)
    read_manifest(steps.start)
    rest = read_rest(steps.start)
    with contextlib.ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="resnet-replay-")))
        kept = replay_run.recipe_at(_rest_of_end(steps) or rest, run_dir)
        scratch = replay_run.scratch_run(steps, rest, kept, folder)
        trained_by = load_file(scratch / "recipe.yaml").recipe
        edited = _edited(run_dir, trained_by)
        overrides = with_data(run_dir, overrides)
        recipe = load([f"recipe={scratch}/recipe.yaml", *overrides]).recipe
        refuse_fixed(changes := differences(trained_by, recipe), run_dir)
        _check_log_every(recipe, log_every)
        train, val = build_data(recipe)
        replay_run.check_data(train, rest, recipe, run_dir)
        order = build_order(recipe, train, kind_of(rest))
        plan = make_plan(recipe, len(order), 1, rest["micro_batch"])
        if dump_batches:
            _dump(steps, recipe, (train, val), rest, folder, tell)
        ranks = replay_run.ranks_here(recipe, plan.slots, rest["world_size"])
        tell(f"training {_range(steps)} again on {plural(ranks, 'rank')}")
        threads = read_provenance(run_dir).get("threads")
        words = replay_run.words_of(steps, plan, scratch, overrides, log_every)
        _train(words, ranks, threads, steps, scratch)
        found = edited + _differences(steps, scratch, log_every in (None, recipe.log_every))
        result = _judged(steps, scratch, found, bool(edited), plan, train, order)
        told = [f"changed for this: {key} {then} -> {now}" for key, (then, now) in changes.items()]
        return result._replace(notes=[*result.notes, *told])


def _train(words: list[str], ranks: int, threads: int | None, steps: Steps, scratch: Path) -> None:
    awaited = {compared.line_of(row) for row in read_metrics(steps.run_dir) if row["step"] == steps.last}
    replay_run.train_again(
        words, ranks, threads, lambda: replay_run.is_done(scratch, steps.last, awaited), scratch.parent / "output.txt"
    )


def steps_of(run_dir: Path, first: int | None, last: int | None) -> Steps:
    """Which steps to train again. Raises ValueError, naming the checkpoints that there are, where it cannot be."""
    there = {step_of(path): path for path in reversed(newest_first(run_dir / "checkpoints"))}
    if not there:
        raise ValueError(f"{run_dir} has no checkpoint to begin from")
    named = ", ".join(name_of(step) for step in there)
    begin = min(there) if first is None else first
    if begin not in there:
        raise ValueError(f"{run_dir} has no checkpoint of step {begin} to begin from: there are {named}")
    logged = max((row["step"] for row in read_metrics(run_dir)), default=0)
    end = next((step for step in there if step > begin), logged) if last is None else last
    if last is None and begin >= end:
        raise ValueError(f"{run_dir} has trained no step after its checkpoint {name_of(begin)}: give an earlier --from")
    if begin >= end:
        raise ValueError(f"there is nothing to train again from step {begin} to step {end}: give a later --to")
    if end > logged:
        raise ValueError(f"--to {end} is beyond what the run has logged, {logged} steps")
    return Steps(run_dir, there[begin], begin, end)


def _check_log_every(recipe: Recipe, log_every: int | None) -> None:
    if log_every is not None and (log_every < 1 or recipe.log_every % log_every):
        raise ValueError(
            f"--log-every {log_every}: the run logged every {recipe.log_every} steps; give 1, or a divisor"
        )


def _range(steps: Steps) -> str:
    return f"steps {steps.first + 1} to {steps.last} of {steps.run_dir}"


def _rest_of_end(steps: Steps) -> dict[str, Any] | None:
    """What the run's own checkpoint of the last step holds beside weights; None where it is not there, or damaged."""
    with contextlib.suppress(CheckpointError):
        return read_rest(_end_of(steps))
    return None


def _end_of(steps: Steps) -> Path:
    return steps.run_dir / "checkpoints" / name_of(steps.last)


def _dump(
    steps: Steps,
    recipe: Recipe,
    sources: tuple[Source, Source],
    rest: dict[str, Any],
    folder: Path,
    tell: Callable[[str], None],
) -> None:
    """A picture and a table of the images of each step."""
    batches = folder / "batches"
    batches.mkdir(parents=True, exist_ok=True)
    tell(f"drawing the images of each step in {batches}")
    for step in range(steps.first + 1, steps.last + 1):
        how = {"micro_batch": rest["micro_batch"], "precision": rest["precision"], "order_kind": kind_of(rest)}
        seen = look(recipe, step, recipe.batch_size, sources=sources, **how)
        draw_seen(seen, batches / f"{name_of(step)}.png", f"{steps.run_dir}, step {step}")
        write_atomic(batches / f"{name_of(step)}.json", to_json(as_json(seen), indent=1))


def _differences(steps: Steps, scratch: Path, window: bool) -> list[str]:
    """What differs between what the run left and what was made again, in words. window: of the log, likewise."""
    of_run, again = read_metrics(steps.run_dir), read_metrics(scratch)
    end, made, found = _end_of(steps), scratch / "checkpoints" / name_of(steps.last), []
    parting = compared.compare_logs(of_run, again, steps.first, steps.last)
    if parting is not None:
        found.append(f"the log {told_parting(parting, 0)}")
    found += compared.missing_lines(of_run, again, steps.first, steps.last)
    if end.is_dir():
        found += [fault] if (fault := compared.fault_of(end)) else []
        try:
            found += compare_checkpoints(end, made, window)
        except (CheckpointError, SafetensorError, OSError, KeyError) as error:
            found.append(f"checkpoint {end} cannot be compared ({error})")
    if read_status(steps.run_dir).get("final_step") == steps.last and (steps.run_dir / FINAL).is_file():
        found += compared.compare_weights(steps.run_dir / FINAL, made)
    return found


def _judged(
    steps: Steps, scratch: Path, found: list[str], edited: bool, plan: Plan, train: Source, order: Order
) -> Replay:
    """The result, and what the differences come from as far as can be told."""
    of_run, again = read_metrics(steps.run_dir), read_metrics(scratch)
    parting = compared.compare_logs(of_run, again, steps.first, steps.last)
    environment = environment_differences(read_provenance(steps.run_dir), read_provenance(scratch))
    reasons = [key for key in environment if key in _ROUNDS_OTHERWISE]
    if read_provenance(scratch)["devices"][0] != "CPU" and not plan.recipe.deterministic:
        reasons.append("kernels of a GPU that add in no fixed order (deterministic=true orders them)")
    end, distance = _end_of(steps), 0.0
    damaged = end.is_dir() and compared.fault_of(end) is not None
    if found and end.is_dir():
        with contextlib.suppress(SafetensorError, OSError, KeyError):
            distance = compared.apart(steps.start, end, scratch / "checkpoints" / name_of(steps.last))
    other_images = parting is not None and parting.same_images is False
    is_rounding = distance <= CLOSE and not edited and not damaged and not _far_apart(of_run, again, steps)
    is_rounding &= not other_images or not environment.keys().isdisjoint(_DECODES_OTHERWISE)
    close = not found or (bool(reasons) and is_rounding)
    notes = [_what_was_compared(steps, of_run)]
    if found:
        notes += _reasons(parting, close, reasons, distance)
    if found and not close and (parting is None or not parting.same_images):
        upto = steps.last if parting is None else parting.step
        span, since = range(steps.first, upto), _trained_at(of_run, upto)
        notes += compared.changed_files(train, order, plan, span, since)
    rows = [dict(row) for row in compared.log_lines(again, steps.first, steps.last)]
    step = None if parting is None else parting.step
    return Replay(steps.first, steps.last, not found, close, found, step, environment, notes, rows)


def _what_was_compared(steps: Steps, of_run: Sequence[compared.Row]) -> str:
    end, lines = _end_of(steps), len(compared.log_lines(of_run, steps.first, steps.last))
    if end.is_dir():
        return f"compared: checkpoint {end.name} (weights, average, optimizer, counters) and {lines} lines of the log"
    have = ", ".join(path.name for path in reversed(newest_first(steps.run_dir / "checkpoints")))
    return f"compared: {lines} lines of the log; no weights of step {steps.last} are kept (there are {have})"


def _edited(run_dir: Path, trained_by: Recipe) -> list[str]:
    """Keys of recipe.yaml that are not what was trained by, and that no attempt is known to have changed."""
    attempts = read_provenance(run_dir).get("attempts", [])
    told = {key for attempt in attempts for key in attempt.get("changed") or {}}
    pairs = differences(trained_by, load_file(run_dir / "recipe.yaml").recipe)
    return [
        f"recipe.yaml has been edited: {key} is {show(now)}, and the checkpoint was trained by {show(before)}"
        for key, (before, now) in pairs.items()
        if key not in told
    ]


def _far_apart(of_run: Sequence[compared.Row], again: Sequence[compared.Row], steps: Steps) -> bool:
    """Whether the first lines' losses are further apart than rounding makes them."""
    first = {compared.line_of(row): row for row in compared.log_lines(again, steps.first, steps.last)}
    for row in compared.log_lines(of_run, steps.first, steps.last):
        if (same := first.get(compared.line_of(row))) and "train/loss" in row:
            return is_far(row, same, 2 * FAR)
    return False


def _trained_at(of_run: Sequence[compared.Row], step: int) -> float:
    """Unix time by which the run had trained on a step's images."""
    return min((row["time"] for row in of_run if row["step"] >= step and "time" in row), default=float("inf"))


def _reasons(parting: Parting | None, close: bool, reasons: list[str], distance: float) -> list[str]:
    """What the differences come from, as far as can be told."""
    apart = [f"the weights are {distance:.2g} of the way apart that these steps took them"] if distance else []
    if close:
        other_images = _of_images(parting) if parting and parting.same_images is False else []
        return [f"different, as rounding is, by: {', '.join(reasons)}", *other_images, *apart]
    if parting is None:
        return [
            "the log is equal throughout: what differs was changed after it was written, or written wrongly",
            *apart,
        ]
    same = "machine, versions, ranks and threads are the same"
    return [*_of_images(parting), f"not the same: {', '.join(reasons)}" if reasons else same, *apart]


def _of_images(parting: Parting) -> list[str]:
    if parting.same_images is None:
        return []
    if parting.same_images:
        return [f"the images behind the line of step {parting.step} are the same: what was computed from them differs"]
    return [
        f"the images behind the line of step {parting.step} are not those that the run trained on: files were "
        "replaced, or are decoded otherwise now"
    ]
