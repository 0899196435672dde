"""The wiring of a run: build everything, restore, fit, report. `main` turns its end into an exit code."""

from __future__ import annotations

import contextlib
import gc
import os
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

from recipes.load import RecipeError, digest, dump, load
from recipes.plan import Plan, make_plan
from recipes.schema.recipe import Recipe
from resnet.build import (
    build_accelerator,
    build_data,
    build_model_for,
    build_state,
    first_of_ranks,
    together,
    wrap,
)
from resnet.checkpoint.commit import clean
from resnet.checkpoint.resume import Start, find_start
from resnet.checkpoint.saver import Saver, check_space
from resnet.checkpoint.snapshot import restore
from resnet.data.loader import Loader, MicroBatches, check_shared_memory, end_workers, workers_per_rank
from resnet.data.order import Order
from resnet.data.sources.registry import Source
from resnet.failure import Failure, explain, out_of_memory
from resnet.last_files import finish
from resnet.loop import Trainer, fit
from resnet.process.environment import ATTEMPT
from resnet.process.exit_codes import FAILED, FINISHED, MISTAKE, STOPPED
from resnet.process.signals import Signals, die_with_launcher
from resnet.process.streams import forgive_output
from resnet.run_hooks import RunHooks
from resnet.rundir.files import write_atomic
from resnet.rundir.metrics_log import MetricsLog
from resnet.rundir.provenance import end_attempt, provenance, record_attempt
from resnet.rundir.status import write_status
from resnet.tracking.profiling import profile_steps
from resnet.tracking.progress import Progress
from resnet.tracking.wandb_client import NullTracker, open_wandb
from resnet.tracking.watchdog import RankLog, Watchdog


def main(argv: Sequence[str], signals: Signals | None = None) -> int:
    """Run what a command line says; returns the exit code.

    signals: those already listened for, of a caller that did so before the imports that take seconds.
    """
    debug = "--debug" in argv
    signals = signals or Signals()
    signals.install()
    forgive_output()
    die_with_launcher()
    try:
        recipe = load([argument for argument in argv if argument != "--debug"]).recipe
        accelerator = build_accelerator(recipe)
        code = run(recipe, accelerator, signals)
    except (RecipeError, ValueError) as error:
        if debug:
            traceback.print_exc()
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"train.py: {error}", file=sys.stderr)
        code = MISTAKE
    except torch.cuda.OutOfMemoryError as error:
        print(f"train.py: {error}", file=sys.stderr)
        code = FAILED
    if dist.is_initialized():
        if code == FAILED:
            # To take leave of a process group one of whose members is gone, or hangs, could take for ever.
            _leave(code)
        dist.destroy_process_group()
    return code


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(recipe: Recipe, accelerator: Accelerator, signals: Signals) -> int:
    """Train on this rank. Raises ValueError for what the user can mend, before anything is written."""
    rank, local_rank = accelerator.process_index, accelerator.local_process_index
    train, val = together(lambda: build_data(recipe), local_rank, first_alone=True)
    order = _order(recipe, train)
    start = together(lambda: find_start(recipe, train))
    with contextlib.ExitStack() as lifetime:
        lifetime.callback(start.release)
        plan = together(lambda: make_plan(recipe, len(order), accelerator.num_processes, start.micro_batch))
        if start.is_finished(plan):
            if rank == 0:
                print(f"{start.run_dir} is finished: nothing to do (more epochs= would continue it)")
            return FINISHED
        model, note = together(lambda: build_model_for(recipe, len(train.classes)), local_rank, first_alone=True)
        state = build_state(recipe, plan, model, accelerator)
        together(lambda: check_space(start.run_dir, state, recipe.checkpoint.keep))
        try:
            network = wrap(recipe, plan, state.model, accelerator, start.step)
        except torch.cuda.OutOfMemoryError as error:
            raise torch.cuda.OutOfMemoryError(out_of_memory(error, plan.micro_batch)) from error
        if start.checkpoint is not None:
            together(lambda: _restore(state, start, plan, accelerator))
        state.model.train()

        information = together(lambda: _open_run_dir(recipe, start, plan, state.step, accelerator) if rank == 0 else {})
        log = lifetime.enter_context(contextlib.closing(RankLog(start.run_dir, rank)))
        saver = Saver(
            start.run_dir, plan, _facts(recipe, plan, start, accelerator.mixed_precision), start.lease, writes=rank == 0
        )
        progress = Progress(recipe.progress if rank == 0 else "off", plan.end_step, plan.steps_per_epoch, state.step)
        metrics, tracker = None, NullTracker()
        if rank == 0:
            metrics = lifetime.enter_context(contextlib.closing(MetricsLog(start.run_dir / "metrics.jsonl")))
            metrics.truncate(start.log_length)
            tracker = open_wandb(recipe, start.run_dir, information)
            write_status(start.run_dir, wandb_url=tracker.url)
            for message in start.messages:
                print(message, file=sys.stderr)
        watchdog = Watchdog(recipe.watchdog, log, state.step) if recipe.watchdog else None
        hooks = RunHooks(
            start.run_dir, plan, state, saver, signals, progress, metrics, tracker, train.classes, watchdog
        )
        trainer = Trainer(plan, accelerator, network, state, len(train.classes), len(train), len(val), hooks)
        workers = workers_per_rank(recipe.data.num_workers)
        batches = MicroBatches(train, val, order, recipe.augment)
        check_shared_memory(plan, workers, recipe.data.prefetch)
        trainer.batches = iter(Loader(batches, trainer.keys(), accelerator.device, workers, recipe.data.prefetch))
        for line in _opening(recipe, plan, start, state.step, train, val, accelerator, workers, note, tracker):
            progress.message(line)
        return _train(trainer, hooks, log)


def _train(trainer: Trainer, hooks: RunHooks, log: RankLog) -> int:
    """Fit, and leave the run directory in a state that says how it ended."""
    begin, first_step = time.time(), trainer.state.step
    outcome, failure, signal = "failed", None, None
    gc.collect()
    gc.freeze()
    try:
        with profile_steps(trainer):
            outcome = fit(trainer)
        hooks.saver.wait()
        if failure := first_of_ranks(_saving_failed(hooks, ended=outcome == "finished")):
            outcome = "failed"
    except Exception as error:
        failure = explain(error, trainer.plan)
        if failure.unexpected:
            traceback.print_exc(file=log.file)
            traceback.print_exc()
        # Its frames hold the loader, whose workers would otherwise be waited for.
        traceback.clear_frames(error.__traceback__)
    else:
        signal = first_of_ranks(hooks.signals.received)
    finally:
        gc.unfreeze()
        hooks.close()
        trainer.batches = iter(())
        end_workers()
    step = trainer.state.step
    if failure is not None and (failure.kind == "lease" or hooks.lost):
        print(f"train.py: {failure.reason}", file=sys.stderr)
        hooks.tracker.finish(exit_code=1, timeout=15)
        return FAILED
    if failure is not None:
        first = log.fail(trainer.plan.world_size, step, failure.reason, failure.kind, failure.own_fault)
        if trainer.rank == log.speaker:
            print(f"train.py: training failed: {first}\n{_after_failure(hooks)}", file=sys.stderr)
    if hooks.metrics is not None:
        reason = failure.reason if failure else "finished" if outcome == "finished" else f"signal {signal}"
        with contextlib.suppress(OSError) if failure else contextlib.nullcontext():
            end_attempt(hooks.run_dir, reason, step)
        if outcome == "finished":
            finish(trainer, hooks, begin, first_step)
        if failure is None:
            write_status(hooks.run_dir, state=outcome, reason=reason, failure=None, eta_s=None)
        hooks.tracker.finish(exit_code=int(outcome == "failed"), timeout=30 if outcome == "finished" else 15)
        if command := hooks.tracker.sync_command():
            print(f"W&B: nothing was uploaded; to do so: {command}")
        if outcome == "stopped":
            at = "which could not be saved" if hooks.saver.failures else "with a checkpoint"
            # In a job the batch script decides whether it goes on by itself.
            then = "" if ATTEMPT in os.environ else f"; to continue: {_continue_command(hooks.run_dir)}"
            print(f"stopped ({reason}) after step {step}, {at}{then}", flush=True)
    return {"finished": FINISHED, "stopped": STOPPED, "failed": FAILED}[outcome]


def _saving_failed(hooks: RunHooks, ended: bool) -> Failure | None:
    reason = hooks.why_saving_failed(ended)
    return Failure("lease" if hooks.lost else "disk", reason) if reason else None


def _continue_command(run_dir: Path) -> str:
    """The command line of this process, with the run named; in a job the command that sends it again."""
    if ATTEMPT in os.environ:
        return shlex.join(["launch", "retry", str(run_dir)])
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    several = f" --multi_gpu --num_processes {ranks}" if ranks > 1 else ""
    launcher = f"accelerate launch{several}" if "ACCELERATE_MIXED_PRECISION" in os.environ else "python"
    if launcher == "python" and "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = f"torchrun --nproc-per-node {os.environ['LOCAL_WORLD_SIZE']}"
    given = [a for a in sys.argv[1:] if a.partition("=")[0] not in ("run.name", "run.root", "resume")]
    return f"{launcher} {shlex.join([sys.argv[0], *given, f'run.root={run_dir.parent}', f'run.name={run_dir.name}'])}"


def _after_failure(hooks: RunHooks) -> str:
    newest = max((hooks.run_dir / "checkpoints").glob("step-*[0-9]"), default=None)
    kept = f"the newest checkpoint is {newest.name}; to continue from it: " if newest else "no checkpoint yet; again: "
    return f"{kept}{_continue_command(hooks.run_dir)}\nlogs: {hooks.run_dir / 'logs'}"


def _order(recipe: Recipe, train: Source) -> Order:
    data = recipe.data
    return Order(train.labels, recipe.seed, recipe.batch_size, data.repeats, data.balance == "oversample")


def _restore(state, start: Start, plan: Plan, accelerator: Accelerator) -> None:
    assert start.checkpoint is not None
    if plan.recipe.model.sync_batchnorm and start.rest["world_size"] != plan.world_size:
        raise ValueError(
            f"{start.checkpoint} is of {start.rest['world_size']} devices, and with model.sync_batchnorm BatchNorm "
            f"normalises over all of them: continue on as many, not on {plan.world_size}"
        )
    if start.rest["precision"] != accelerator.mixed_precision:
        start.messages.append(f"changed: precision {start.rest['precision']} -> {accelerator.mixed_precision}")
    restore(state, start.checkpoint, start.rest, accelerator.process_index, accelerator.num_processes)
    if start.is_new:
        start.place_in(state, plan)
    if state.step > plan.end_step:
        raise ValueError(f"{start.checkpoint} is of step {state.step} and this recipe ends at step {plan.end_step}")


def _facts(recipe: Recipe, plan: Plan, start: Start, precision: str) -> dict[str, Any]:
    """What a checkpoint says of the run beside its state."""
    return {
        "digest": digest(recipe),
        "recipe": recipe.model_dump(mode="json"),
        "micro_batch": plan.micro_batch,
        "world_size": plan.world_size,
        "precision": precision,
        "steps_per_epoch": plan.steps_per_epoch,
        "data": start.data_digest,
    }


def _open_run_dir(recipe: Recipe, start: Start, plan: Plan, step: int, accelerator: Accelerator) -> dict[str, Any]:
    run_dir = start.run_dir
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make {run_dir} ({error.strerror}): choose another run.root") from error
    start.acquire()
    clean(run_dir / "checkpoints")
    saved = recipe.model_copy(
        update={"run": recipe.run.model_copy(update={"name": run_dir.name}), "resume": start.origin or recipe.resume}
    )
    write_atomic(run_dir / "recipe.yaml", dump(saved))
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    derived = {
        "steps_per_epoch": plan.steps_per_epoch,
        "total_steps": plan.total_steps,
        "batch_size": plan.batch_size,
        "micro_batch": plan.micro_batch,
        "accumulation": plan.accumulation,
        "lr": plan.lr,
        "precision": accelerator.mixed_precision,
    }
    information = provenance(sys.argv, [name] * plan.world_size, plan.world_size, derived)
    attempt = record_attempt(run_dir, {**information, "changed": start.changed}, step)
    write_status(
        run_dir,
        name=run_dir.name,
        state="running",
        step=step,
        total_steps=plan.end_step,
        epoch=plan.epoch(step),
        epochs=recipe.epochs,
        attempts=attempt,
        failure=None,
        reason=None,
        pid=os.getpid(),
        host=information["host"],
        job_id=information["job_id"],
    )
    return information


def _opening(recipe, plan: Plan, start: Start, step: int, train, val, accelerator, workers, note, tracker) -> list[str]:
    device = accelerator.device
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    ranks = f"{plan.world_size} x {what}" if plan.world_size > 1 else what
    accumulated = f" in {plan.accumulation} micro-batches" if plan.accumulation > 1 else ""
    lines = [
        f"{recipe.name}: {recipe.model.name or recipe.model.block} on {ranks}, "
        f"precision {accelerator.mixed_precision}; run directory {start.run_dir}",
        f"{len(train)} training and {len(val)} validation images of {len(train.classes)} classes; "
        f"{plan.steps_per_epoch} steps an epoch, {plan.end_step} in all; batch {plan.batch_size}, "
        f"{plan.batch_size // plan.world_size} per device{accumulated}; lr {plan.lr:g}; {workers} workers per device",
        *([note] if note else []),
        *([tracker.note] if tracker.note else []),
    ]
    if device.type == "cpu" and "imagenet" in recipe.name and len(train) > 100_000:
        lines.append("no GPU: this will take years; launch it where torch sees one")
    if start.checkpoint is not None:
        lines.append(f"continues from {start.checkpoint} (step {step})")
    return lines
