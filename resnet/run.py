"""The wiring of a run: build everything, restore, fit, report. `train` leaves the other ranks."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn

from recipes.load import digest
from recipes.plan import Plan, make_plan
from recipes.plugin_check import sources
from recipes.plugin_files import naming_copies
from recipes.schema.recipe import Recipe
from resnet.build import (
    build_accelerator,
    build_class_weights,
    build_model_for,
    build_order,
    build_splits_of_ranks,
    build_state,
    stage_data,
    wrap,
)
from resnet.checkpoint.resume import Start, find_start, finished_before, note_edits
from resnet.checkpoint.saver import Saver, check_space
from resnet.checkpoint.snapshot import MODEL, restore
from resnet.data.loader import check_shared_memory, workers_per_rank
from resnet.data.order import Order
from resnet.data.sources.registry import Splits
from resnet.data.sources.source import Source
from resnet.data.targets import check_targets
from resnet.distill import Teacher, load_teacher
from resnet.ending import stop_before_data, train_to_an_end
from resnet.failure import out_of_memory
from resnet.feeding import beside_network, check_input, open_batches, open_test
from resnet.micro_batch import fitted
from resnet.opening import first_lines, open_run_dir
from resnet.plugins import Callbacks, changed_states, digests, load_plugin
from resnet.pretrained import shaped_as_weights
from resnet.process.environment import ATTEMPT, micro_batch_told
from resnet.process.exit_codes import FAILED, FINISHED
from resnet.process.mistakes import OfAllRanks
from resnet.process.rank_logs import all_are_kept
from resnet.process.signals import Signals
from resnet.process.stages import reached
from resnet.process.streams import kept_in, leave
from resnet.ranks import first_of_ranks, leave_ranks, together
from resnet.run_hooks import RunHooks
from resnet.rundir.metrics_log import MetricsLog
from resnet.rundir.status import read_status, write_status
from resnet.state import TrainState
from resnet.tracking.progress import Progress
from resnet.tracking.rank_log import RankLog
from resnet.tracking.wandb_client import NullTracker, open_wandb
from resnet.tracking.watchdog import Watchdog
from resnet.trainer import Trainer


def train(recipe: Recipe, signals: Signals, notes: Sequence[str] = ()) -> int:
    """Train on this rank and take leave of the others; returns the exit code. Raises as `run` does."""
    try:
        code = run(recipe, build_accelerator(recipe), signals, notes)
    except torch.cuda.OutOfMemoryError as error:
        print(f"train.py: {error}", file=sys.stderr)
        code = FAILED
    except ValueError as error:
        leave_ranks(together=isinstance(error, OfAllRanks))
        raise
    if code == FAILED and dist.is_initialized():
        # To take leave of a process group one of whose members is gone, or hangs, could take for ever.
        leave(code)
    leave_ranks()
    return code


def run(recipe: Recipe, accelerator: Accelerator, signals: Signals, notes: Sequence[str] = ()) -> int:
    """Train on this rank. Raises ValueError for what the user can mend, before anything is written to the run's folder.

    notes: on how the recipe was read, to be printed among the first lines.
    """
    rank, local_rank = accelerator.process_index, accelerator.local_process_index
    reached("join")
    together(lambda: sources(recipe))
    copies = {} if recipe.data.stage is None else _copied(recipe, rank, local_rank, signals)
    if isinstance(copies, int):
        return copies
    if copies:
        reached("stage")
    splits = build_splits_of_ranks(recipe, copies, rank, local_rank)
    train, val, test = splits
    reached("look")
    order, weights = together(lambda: _drawn(recipe, splits))
    start = together(lambda: find_start(recipe, train))
    reached("start")
    order = replace(order, kind=start.order)
    with contextlib.ExitStack() as lifetime:
        lifetime.callback(start.release)
        # From here on it is the recipe of the network that is trained, which the weights have a say in.
        recipe, shape = together(lambda: shaped_as_weights(recipe, start.checkpoint and start.checkpoint / MODEL))
        kept = start.micro_batch or micro_batch_told()
        plan = together(lambda: make_plan(recipe, len(order), accelerator.num_processes, kept))
        if start.is_finished(plan):
            return _nothing_to_do(start.run_dir, rank)
        memory = check_input(recipe, train, val, accelerator)
        teacher = together(lambda: load_teacher(recipe, train.classes, start, accelerator))
        beside = beside_network(teacher, weights, accelerator)
        plan, fits = fitted(plan, order, train, val, accelerator, beside) if start.micro_batch is None else (plan, "")
        model, note = together(lambda: _first_model(recipe, train, start), local_rank, first_alone=True)
        state = build_state(recipe, plan, model, accelerator)
        own = together(lambda: _own_code(recipe, state, start))
        together(lambda: check_space(start.run_dir, state, recipe.checkpoint.keep))
        network = _wrapped(recipe, plan, state.model, accelerator, start.step)
        reached("build")
        if start.checkpoint is not None:
            together(lambda: _restore(state, start, plan, accelerator))
            reached("restore")
        state.model.train()

        facts = _facts(recipe, plan, start, accelerator.mixed_precision, teacher, own)
        hooks, log = _open_run(start, plan, state, splits, accelerator, signals, facts, own, notes, lifetime)
        trainer = Trainer(plan, accelerator, network, state, len(train.classes), len(val), hooks, **beside)
        workers = workers_per_rank(recipe.data.num_workers)
        check_shared_memory(plan, workers, recipe.data.prefetch, train)
        loaders = open_batches(trainer, train, val, order, memory, workers, hooks.tell)
        lines = first_lines(recipe, plan, start, splits, accelerator, workers)
        lines += [shape, fits, *note.splitlines(), teacher.note if teacher else "", *_continues(start, state.step)]
        for line in filter(None, lines):
            hooks.tell(line)
        reached("open")
        tested = None if test is None else open_test(trainer, train, test, order, workers, loaders)
        return train_to_an_end(trainer, hooks, log, loaders, (train, val), tested)


def _copied(recipe: Recipe, rank: int, local_rank: int, signals: Signals) -> Mapping[str, str] | int:
    """By key of `data` where this machine's copies lie; an exit code where the run ends before any are needed."""
    if finished := first_of_ranks(together(lambda: finished_before(recipe) if rank == 0 else None)):
        return _nothing_to_do(finished, rank)
    copies = stage_data(recipe, local_rank, lambda: signals.received is not None)
    if copies is not None:
        return copies
    return stop_before_data(recipe, f"signal {first_of_ranks(signals.received)}", rank)


def _drawn(recipe: Recipe, splits: Splits) -> tuple[Order, torch.Tensor | None]:
    """The order in which training images are drawn, and the weights of their classes."""
    check_targets(recipe, splits.train, splits.val)
    order = build_order(recipe, splits.train)
    return order, build_class_weights(recipe, splits.train, order)


def _nothing_to_do(run_dir: Path, rank: int) -> int:
    if rank == 0:
        early = read_status(run_dir).get("stopped_early")
        how = f"{early}; raise early_stopping.patience=" if early else "raise epochs="
        print(f"{run_dir} is finished: nothing to do ({how} to continue it)")
    return FINISHED


def _first_model(recipe: Recipe, train: Source, start: Start) -> tuple[nn.Module, str]:
    """The network, and what to say of the weights it begins with: a run that goes on needs no pretrained ones."""
    return build_model_for(recipe, len(train.classes), train.classes, pretrained=start.checkpoint is None)


def _wrapped(recipe: Recipe, plan: Plan, model: nn.Module, accelerator: Accelerator, step: int) -> nn.Module:
    try:
        return wrap(recipe, plan, model, accelerator, step)
    except torch.cuda.OutOfMemoryError as error:
        raise torch.cuda.OutOfMemoryError(out_of_memory(error, plan.micro_batch)) from error


def _continues(start: Start, step: int) -> list[str]:
    return [f"continues from {start.checkpoint} (step {step})"] if start.checkpoint else []


def _open_run(
    start: Start,
    plan: Plan,
    state: TrainState,
    splits: Splits,
    accelerator: Accelerator,
    signals: Signals,
    facts: dict[str, Any],
    own: Mapping[str, str],
    notes: Sequence[str],
    lifetime: contextlib.ExitStack,
) -> tuple[RunHooks, RankLog]:
    """The run directory, with all that writes to it, closed at the end of `lifetime`."""
    recipe, rank, ranks = plan.recipe, accelerator.process_index, accelerator.num_processes
    images = len(splits.train)
    information = together(
        lambda: open_run_dir(recipe, start, plan, images, state.step, accelerator, own) if rank == 0 else {}
    )
    attempt = first_of_ranks(information.get("attempt"))
    log = lifetime.enter_context(contextlib.closing(RankLog(start.run_dir, rank, ranks, attempt)))
    kept = lifetime.enter_context(_kept_output(start.run_dir, attempt, rank, ranks))
    saver = Saver(start.run_dir, plan, splits.train.classes, facts, start.lease, writes=rank == 0)
    progress = Progress(recipe.progress if rank == 0 else "off", plan.end_step, plan.steps_per_epoch, state.step, kept)
    metrics, tracker = None, NullTracker()
    if rank == 0:
        metrics, tracker = _open_logs(recipe, start, information, lifetime)
        for message in dict.fromkeys([*notes, *start.messages]):
            print(message, file=sys.stderr)
    watchdog = Watchdog(recipe.watchdog, log, state.step, plan.world_size) if recipe.watchdog else None
    hooks = RunHooks(
        start.run_dir, plan, state, saver, signals, progress, metrics, tracker, splits.val, images, watchdog, attempt
    )
    return hooks, log


def _open_logs(
    recipe: Recipe, start: Start, information: dict[str, Any], lifetime: contextlib.ExitStack
) -> tuple[MetricsLog, NullTracker]:
    """The metrics log, cut back to the start's checkpoint and closed with the run, and W&B's run. On rank 0."""
    metrics = lifetime.enter_context(contextlib.closing(MetricsLog(start.run_dir / "metrics.jsonl")))
    metrics.truncate(start.log_length)
    tracker = open_wandb(recipe, start.run_dir, information)
    if tracker.started:
        write_status(start.run_dir, wandb_url=tracker.url)
    return metrics, tracker


def _kept_output(
    run_dir: Path, attempt: int | None, rank: int, ranks: int
) -> contextlib.AbstractContextManager[TextIO | None]:
    """Keep what this rank prints in the run directory, unless the launcher that started it does, or there are many."""
    logs = run_dir / "logs"
    if rank and not all_are_kept(ranks):
        return contextlib.nullcontext()
    with contextlib.suppress(OSError):
        # `launch local` keeps what all ranks print in one file.
        if ATTEMPT in os.environ or any(
            os.path.samestat(os.fstat(1), file.stat()) for file in logs.glob("attempt-*/rank-0.log")
        ):
            return contextlib.nullcontext()
    return kept_in(logs / f"attempt-{attempt}" / f"rank-{rank}.log")


def _restore(state, start: Start, plan: Plan, accelerator: Accelerator) -> None:
    assert start.checkpoint is not None
    if plan.recipe.model.sync_batchnorm and start.rest["world_size"] != plan.world_size:
        raise ValueError(
            f"{start.checkpoint} is of {start.rest['world_size']} devices, and with model.sync_batchnorm BatchNorm "
            f"normalises over all of them: continue on as many, not on {plan.world_size}"
        )
    if start.rest["precision"] != accelerator.mixed_precision:
        start.messages.append(f"changed: precision {start.rest['precision']} -> {accelerator.mixed_precision}")
    _check_average(start, plan.recipe)
    restore(state, start.checkpoint, start.rest, accelerator.process_index, accelerator.num_processes)
    start.messages += changed_states(state.callbacks, start.rest.get("callbacks", {}))
    if start.metric not in (None, plan.recipe.eval.metric):
        # The weights that were the best are kept until there are better ones by the new metric.
        state.best = None
    if start.is_new:
        start.place_in(state, plan)
    if state.step > plan.end_step:
        raise ValueError(f"{start.checkpoint} is of step {state.step} and this recipe ends at step {plan.end_step}")


def _check_average(start: Start, recipe: Recipe) -> None:
    """Raise ValueError where the checkpoint has none of the weights, and by now there would be one."""
    epoch, key, settings = start.epoch, "swa" if recipe.swa else "ema", recipe.swa or recipe.ema
    if start.rest.get("ema_counter", 0) is None and settings and settings.start_epoch <= epoch:
        raise ValueError(
            f"{start.checkpoint} has no average of the weights, and {key} is to begin with epoch "
            f"{settings.start_epoch:g}, of {epoch:g}: set {key}=off, or {key}.start_epoch={int(epoch) + 1} or more"
        )


def _own_code(recipe: Recipe, state: TrainState, start: Start) -> dict[str, str]:
    """Load what the user wrote, and take down what is in its files, by the keys that name them.

    Raises ValueError where it cannot be loaded, or is not the network that the run has trained until now.
    """
    if not (named := recipe.plugins_named()):
        return {}
    own = digests(recipe)
    for key, plugin in named.items():
        load_plugin(plugin, key)
    if recipe.plugins.callbacks:
        state.callbacks = Callbacks(recipe.plugins.callbacks)
    if not start.is_new:
        note_edits(start, recipe, own)
    return own


def _facts(
    recipe: Recipe, plan: Plan, start: Start, precision: str, teacher: Teacher | None, own: Mapping[str, str]
) -> dict[str, Any]:
    """What a checkpoint says of the run beside its state."""
    return {
        "digest": digest(recipe),
        "recipe": naming_copies(recipe, start.run_dir).model_dump(mode="json"),
        "micro_batch": plan.micro_batch,
        "world_size": plan.world_size,
        "precision": precision,
        "steps_per_epoch": plan.steps_per_epoch,
        "data": start.data_digest,
        "order": start.order,
        **({"teacher": teacher.digest} if teacher else {}),
        **({"plugins": dict(own)} if own else {}),
    }
