"""The end of an attempt: what is written and said, however it ended."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from recipes.schema.recipe import Recipe
from resnet.data.loader import Loader
from resnet.data.sources.source import Source
from resnet.failure import Failure, explain
from resnet.last_evaluation import FinalTest, evaluate_at_the_end
from resnet.last_files import summary, write_final_weights
from resnet.loop import fit
from resnet.process.command_lines import continue_command
from resnet.process.environment import ATTEMPT, REHEARSED
from resnet.process.exit_codes import FAILED, FINISHED, STOPPED
from resnet.process.stages import reached
from resnet.ranks import first_of_ranks
from resnet.run_hooks import RunHooks
from resnet.rundir.attempts import end_as_told, told_to_end
from resnet.rundir.find import new_run_dir
from resnet.rundir.lease import holder_elsewhere
from resnet.rundir.provenance import end_attempt
from resnet.rundir.status import write_status
from resnet.tracking.profiling import profile_steps
from resnet.tracking.rank_log import RankLog
from resnet.trainer import Trainer

_EXIT_CODES = {"finished": FINISHED, "stopped": STOPPED, "failed": FAILED}


class End(NamedTuple):
    """How training ended on this rank."""

    outcome: str
    """finished, stopped or failed."""
    reason: str
    failure: Failure | None = None


def train_to_an_end(
    trainer: Trainer,
    hooks: RunHooks,
    log: RankLog,
    loaders: Sequence[Loader],
    sources: tuple[Source, Source],
    test: FinalTest | None = None,
) -> int:
    """Train, and leave the run directory in a state that says how it ended; returns the exit code.

    loaders: of which the workers are ended once no more batches are needed; some may come while it trains.
    sources: training and validation images, for the pictures of the report. test: what it is tested on at its end.
    """
    begin, first_step = time.time(), trainer.state.step
    end = _train(trainer, hooks, log, loaders, test)
    hooks.tracker.end(exit_code=int(end.outcome == "failed"))
    if end.failure is not None and hooks.saver.lease is not None:
        # A later attempt may have taken it since it was looked at.
        hooks.saver.lease.check()
    if end.failure is not None and (end.failure.kind == "lease" or hooks.lost):
        # The run is another process's: nothing is written to it.
        print(f"train.py: {end.reason}", file=sys.stderr)
        hooks.tracker.finish(timeout=15)
        return FAILED
    if end.failure is not None:
        _tell_of_failure(trainer, hooks, log, end.failure)
    if hooks.metrics is not None:
        hooks.tell_of_tracker()
        _write_end(trainer, hooks, end)
        # The report tells of it.
        hooks.close_ledger(failed=end.failure is not None)
        _write_report(hooks, end, sources)
        _say_end(trainer, hooks, end, begin, first_step)
        reached("end")
        hooks.tell_stages()
    return _EXIT_CODES[end.outcome]


def stop_before_data(recipe: Recipe, reason: str, rank: int) -> int:
    """Leave a run that was stopped before its data was there; returns the exit code."""
    if rank == 0:
        root, name = Path(recipe.run.root).expanduser(), recipe.run.name
        run_dir = root / name if name else new_run_dir(root, recipe.name)
        # A new run of a person's has no folder yet, and needs none; a job's has, and is judged by its status.
        if run_dir.is_dir() and not holder_elsewhere(run_dir):
            write_status(run_dir, name=run_dir.name, state="stopped", reason=reason, failure=None, eta_s=None)
        print(f"stopped ({reason}) while the data was copied{_then(run_dir)}", flush=True)
    return STOPPED


def _then(run_dir: Path) -> str:
    # In a job the batch script decides whether it continues by itself.
    return "" if ATTEMPT in os.environ else f"; to continue: {continue_command(run_dir)}"


def _train(trainer: Trainer, hooks: RunHooks, log: RankLog, loaders: Sequence[Loader], test: FinalTest | None) -> End:
    outcome, failure, signal = "failed", None, None
    gc.collect()
    gc.freeze()
    try:
        with profile_steps(trainer):
            outcome = fit(trainer)
        reached("steps")
        with hooks.ledger.of("save"):
            hooks.saver.wait()
        reached("save")
        failure = first_of_ranks(_saving_failed(hooks, ended=outcome == "finished"))
        if outcome == "finished" and failure is None and test and not evaluate_at_the_end(trainer, hooks, test):
            outcome = "stopped"
    except (Exception, SystemExit) as error:
        failure = explain(error, trainer.plan)
        if isinstance(error, SystemExit) and failure.kind != "plugin":
            raise
        if failure.unexpected or failure.kind == "plugin":
            traceback.print_exc(file=log.file)
        if failure.unexpected or (failure.kind == "plugin" and "--debug" in sys.argv):
            traceback.print_exc()
        # Its frames hold the loader, whose workers would otherwise be waited for.
        traceback.clear_frames(error.__traceback__)
    else:
        signal = first_of_ranks(hooks.signals.received)
    finally:
        gc.unfreeze()
        hooks.close()
        trainer.batches = iter(())
        for loader in loaders:
            loader.end()
    if failure is not None:
        return End("failed", failure.reason, failure)
    if outcome == "finished":
        return End(outcome, trainer.stopped_early or "finished")
    # Nobody has to ask a rehearsal to stop.
    return End(outcome, f"signal {signal}" if signal else REHEARSED)


def _saving_failed(hooks: RunHooks, ended: bool) -> Failure | None:
    reason = hooks.why_saving_failed(ended)
    return Failure("lease" if hooks.lost else "disk", reason) if reason else None


def _tell_of_failure(trainer: Trainer, hooks: RunHooks, log: RankLog, failure: Failure) -> None:
    first = log.fail(trainer.plan.world_size, trainer.state.step, failure.reason, failure.kind, failure.own_fault)
    if trainer.rank == log.speaker:
        print(f"train.py: training failed: {first}\n{_after_failure(hooks)}", file=sys.stderr)


def _after_failure(hooks: RunHooks) -> str:
    newest = max((hooks.run_dir / "checkpoints").glob("step-*[0-9]"), default=None)
    kept = f"the newest checkpoint is {newest.name}; to continue from it: " if newest else "no checkpoint yet; again: "
    return f"{kept}{continue_command(hooks.run_dir)}\nlogs: {hooks.run_dir / 'logs'}"


def _write_end(trainer: Trainer, hooks: RunHooks, end: End) -> None:
    """Write, on rank 0, what the run leaves: the status last, which a resume leans on."""
    run_dir = hooks.run_dir
    with contextlib.suppress(OSError) if end.failure else contextlib.nullcontext():
        end_attempt(run_dir, end.reason, trainer.state.step)
    if end.outcome == "finished":
        step = write_final_weights(run_dir, trainer.state.best_step)
        write_status(run_dir, top1=hooks.result["top1"], final_step=step, test_top1=hooks.test_result.get("top1"))
    if end.failure is None:
        # Where it was stopped is seldom where the log has its last line.
        step = trainer.state.step
        reached = {"step": step, "epoch": round(trainer.plan.epoch(step), 4)}
        fields = {"state": end.outcome, "reason": end.reason, "failure": None, "eta_s": None}
        if end.outcome == "stopped" and (why := told_to_end(run_dir)):
            # Here too: a job that is cancelled at once may end before its batch script can say so.
            fields |= end_as_told(why)
        fields["stopped_early"] = trainer.stopped_early if end.outcome == "finished" else None
        write_status(run_dir, **fields, **reached, **hooks.last_checkpoint)


def _write_report(hooks: RunHooks, end: End, sources: tuple[Source, Source]) -> None:
    """Trouble with a picture or the report is told and does not fail the run."""
    try:
        from resnet.tools.report.report import write_report

        # A job that stops is about to be queued again, and its time is short; the images of one that failed may hang.
        write_report(hooks.run_dir, sources, page_only=end.outcome != "finished" and ATTEMPT in os.environ)
    except Exception as error:
        print(f"the report could not be written: {type(error).__name__}: {error}", file=sys.stderr)


def _say_end(trainer: Trainer, hooks: RunHooks, end: End, begin: float, first_step: int) -> None:
    if end.outcome == "finished":
        print(summary(trainer, hooks, begin, first_step), flush=True)
    hooks.tracker.finish(timeout=30 if end.outcome == "finished" else 15)
    if command := hooks.tracker.sync_command():
        print(f"W&B: nothing was uploaded; to do so: {command}")
    if end.outcome == "stopped":
        saved = any((hooks.run_dir / "checkpoints").glob("step-*[0-9]"))
        at = "which could not be saved" if hooks.saver.failures or not saved else "with a checkpoint"
        print(f"stopped ({end.reason}) after step {trainer.state.step}, {at}{_then(hooks.run_dir)}", flush=True)
