"""What happens around the steps of a run: the log, checkpoints, progress, status, and stopping when asked to."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from recipes.plan import Plan
from resnet.agreement import NOTHING, SAVE, STOP, Agreement
from resnet.checkpoint.saver import MOST_FAILURES, Saver
from resnet.data.sources.source import Source
from resnet.process.environment import REHEARSAL
from resnet.process.ledger import Ledger
from resnet.process.signals import Signals
from resnet.process.stages import reached
from resnet.rundir.evaluation import write_evaluation
from resnet.rundir.metrics_log import INPUT_DIGEST, SLOW_RANKS, MetricsLog
from resnet.rundir.stages import write_stages
from resnet.rundir.status import write_status
from resnet.state import TrainState
from resnet.tally import described
from resnet.tracking.progress import Progress
from resnet.tracking.wandb_client import NullTracker
from resnet.tracking.watchdog import Watchdog


class RunHooks:
    """`trainer.Hooks` of a real run. `log` and `tracker` write on rank 0 only; the rest goes on everywhere."""

    def __init__(
        self,
        run_dir: Path,
        plan: Plan,
        state: TrainState,
        saver: Saver,
        signals: Signals,
        progress: Progress,
        metrics: MetricsLog | None,
        tracker: NullTracker,
        val: Source,
        training_images: int,
        watchdog: Watchdog | None = None,
        attempt: int | None = None,
    ) -> None:
        self.run_dir, self.plan, self.state, self.saver = run_dir, plan, state, saver
        self.signals, self.progress, self.metrics, self.tracker = signals, progress, metrics, tracker
        self.watchdog, self.val, self.training_images = watchdog, val, training_images
        self.agreement = Agreement(state.window.device)
        self.result: dict[str, Any] = {}
        """Of the last evaluation."""
        self.test_result: dict[str, Any] = {}
        """Of the evaluation on the test images, at the end."""
        self.images_per_second: list[float] = []
        self._since_evaluation: list[dict[str, Any]] = []
        self._tracker_told = False
        self.attempt, self.first_step = attempt, state.step
        self.ledger, self._kept = Ledger(), {}
        self._at_save: dict[int, dict[str, float]] = {}
        self._ended = False
        saver.on_commit = self._note_kept
        self._rehearsed_steps = int(os.environ.get(REHEARSAL, "0"))

    def log(self, row: dict[str, Any]) -> None:
        row = row | {"time": time.time()}
        if "train/loss" in row:
            self._since_evaluation.append(row)
            self.images_per_second.append(row["images_per_second"])
            self.progress.update(
                row["step"], row["train/loss"], row["images_per_second"], lr=row["lr"], data_wait=row["data_wait"]
            )
        if self.metrics is None or self.lost:
            return
        if self.tracker.started:
            self.tell_of_tracker(self.progress.message)
        self.metrics.log(row)
        self.tracker.log(self._for_tracker(row))
        shown = {"images_per_second": "images_per_second", "train/loss": "loss", "val/top1": "top1"}
        self._tell(
            step=row["step"],
            epoch=round(row["epoch"], 4),
            eta_s=self.progress.eta_seconds,
            **self.last_checkpoint,
            **{name: row[key] for key, name in shown.items() if key in row},
            **({SLOW_RANKS: row.get(SLOW_RANKS)} if "slowest_ratio" in row else {}),
        )

    @property
    def last_checkpoint(self) -> dict[str, float]:
        """For status.json, which keeps what an earlier attempt wrote until this one has saved."""
        saved = self.saver.committed_time
        return {} if saved is None else {"last_checkpoint_time": saved}

    def _for_tracker(self, row: dict[str, Any]) -> dict[str, Any]:
        # A digest and names are nothing to draw.
        shown = {k: value for k, value in row.items() if k != INPUT_DIGEST and not isinstance(value, str)}
        if "images_per_second" in row:
            shown["images_per_second_per_device"] = row["images_per_second"] / self.plan.world_size
        return shown

    def tell_of_tracker(self, say: Callable[[str], None] = print) -> None:
        """Say once where W&B's data goes, waiting for W&B where it has not started yet."""
        if not self._tracker_told:
            self._tracker_told = True
            if note := self.tracker.note:
                say(note)
            self._tell(wandb_url=self.tracker.url)

    def tell(self, line: str) -> None:
        self.progress.message(line)

    def after_step(self) -> bool:
        step = self.state.step
        self.progress.update(step)
        if self.watchdog is not None:
            self.watchdog.step_made(step, self._kind_of_step(step))
            if self.state.callbacks and self.state.callbacks.follow_steps:
                # The user's own code takes what time it takes, and other ranks wait for it.
                self.watchdog.expect_long()
        self._note_first_step()
        wish = STOP if self._must_stop() else SAVE if self.saver.due_by_time() else NOTHING
        granted = self.agreement.reach(wish)
        # A wish is granted a step late: what was wished again meanwhile has been fulfilled.
        timely = granted == SAVE and step > self.saver.saved_step + 1
        at_end = step % self.plan.steps_per_epoch == 0 or step == self.plan.end_step
        if granted == STOP or timely or at_end or self.saver.due(step):
            if self.watchdog is not None:
                # On all ranks: those that write nothing wait in the next step for the one that does.
                self.watchdog.expect_long()
            self.save(wait=granted == STOP)
        if note := self.saver.note:
            self.saver.note = ""
            self.progress.message(note)
        return granted == STOP

    def before_evaluation(self) -> None:
        if self.watchdog is not None:
            self.watchdog.rest()
        self.save()
        self.ledger.turn("evaluate")

    def stop_now(self) -> bool:
        if self.watchdog is not None:
            self.watchdog.beat()
        if self.agreement.reach(STOP if self._must_stop() else NOTHING) == STOP:
            # The next attempt begins it anew.
            self.ledger.was("lost")
            self.saver.wait()
            return True
        return False

    def after_evaluation(self, result: dict[str, Any], best: bool) -> None:
        self.result = result
        self.ledger.turn("train" if self.state.step > self.first_step else "start")
        if best:
            with self.ledger.of("save"):
                self.saver.mark_best(self.state.step)
        self.progress.message(self._epoch_line(result, best))
        self._since_evaluation.clear()
        if self.metrics is not None and not self.lost:
            metric = self.plan.recipe.eval.metric
            self.tracker.summary({f"best/{metric}": self.state.best, "best/step": self.state.best_step})
            self._tell(best=self.state.best)
            if best:
                told = {**result, "mistakes": described(result["mistakes"], self.val.describe)}
                with contextlib.suppress(OSError):
                    write_evaluation(self.run_dir, told, self.val.classes, self.state.step)
            self.tell_stages()

    def save(self, wait: bool = False) -> None:
        if wait:
            _await_device()
            reached("steps")
        with self.ledger.of("save"):
            self._save(wait)
        if wait:
            reached("save")

    def _save(self, wait: bool) -> None:
        length: int | None = 0
        if self.metrics is not None:
            try:
                length = self.metrics.sync()
            except OSError as error:
                length, self.saver.problem = None, f"metrics.jsonl: {error.strerror}"
        self.saver.save(self.state, length, wait)
        self._at_save = {self.state.step: self.ledger.seconds()}

    def _tell(self, **fields: Any) -> None:
        """Update status.json, a view that a full disk may leave behind."""
        with contextlib.suppress(OSError):
            write_status(self.run_dir, **fields)

    @property
    def lost(self) -> bool:
        """Whether another process has taken the run over, so that nothing in its directory may be written."""
        return self.saver.lease is not None and self.saver.lease.lost

    def why_saving_failed(self, ended: bool = False) -> str | None:
        """Where checkpoints could not be saved for too long, or must not be since another process has the run.

        ended: whether the last save was that of the run's end, which must not fail at all.
        """
        if self.lost:
            return f"another process has taken {self.run_dir} over; this one has stopped"
        if self.saver.failures >= (1 if ended else MOST_FAILURES):
            return f"checkpoints could not be saved: {self.saver.problem}"
        return None

    def close(self) -> None:
        """End what runs beside training."""
        self.progress.close()
        if self.watchdog is not None:
            self.watchdog.stop()

    def _kind_of_step(self, step: int) -> tuple[int, ...]:
        """What makes a step unlike another, so that its first may take long: it may be compiled anew."""
        plan = self.plan
        if step >= plan.end_step:
            return ()
        parts = sum(epoch * plan.steps_per_epoch <= step for epoch in plan.recipe.model.unfreeze or ())
        return plan.image_size(step), plan.samples_of_step(step), parts

    def _must_stop(self) -> bool:
        rehearsed = 0 < self._rehearsed_steps <= self.state.step - self.first_step
        return rehearsed or self.signals.received is not None or self.why_saving_failed() is not None

    def _note_first_step(self) -> None:
        if self.state.step == self.first_step + 1:
            if self._rehearsed_steps:
                _await_device()
            reached("step")
            self.ledger.turn("train")
            self.tell_stages()

    def _note_kept(self, step: int) -> None:
        """Note that the checkpoint of a step is there. Called by the thread that wrote it."""
        # One that is waited for is there before `_save` comes to note when it was taken.
        self._kept = {"step": step, "spent": self._at_save.get(step) or self.ledger.seconds()}
        self.tell_stages()

    def close_ledger(self, failed: bool) -> None:
        """Training has ended: what was made since the last checkpoint is lost where it failed."""
        if failed:
            self.ledger.lose(self._kept.get("spent") or {"start": self.ledger.seconds()["start"]})
        self.ledger.turn("other")
        self._ended = True
        self.tell_stages()

    def tell_stages(self) -> None:
        """Write, on rank 0, what this attempt has spent its time on, and what it takes."""
        if self.metrics is None or self.attempt is None or self.lost:
            return
        step, seen = self.state.step, self.plan.samples_seen
        images = seen(step) - seen(min(self.first_step + 1, step))
        facts = {"first_step": self.first_step, "step": step, "further_images": images, "stall_s": self.saver.stall}
        facts |= {"spent": self.ledger.seconds(), "kept": self._kept, "ended": self._ended}
        write_stages(self.run_dir, self.attempt, **facts, **_memory())

    def _epoch_line(self, result: dict[str, Any], best: bool) -> str:
        rows, plan = self._since_evaluation, self.plan
        train = ""
        if rows:
            loss, top1 = (sum(row[key] for row in rows) / len(rows) for key in ("train/loss", "train/top1"))
            train = f"train loss {loss:.4f} top-1 {top1:.2f}%  "
        own = "".join(f" {name} {result[name]:.4g}" for name in plan.recipe.plugins.metrics)
        # Of five classes or fewer it is 100% whatever the network does.
        top5 = f" top-5 {result['top5']:.2f}%" if len(self.val.classes) > 5 else ""
        return (
            f"epoch {plan.epoch(self.state.step):.4g}/{plan.end_epoch:.4g}  {train}val loss {result['loss']:.4f} "
            f"top-1 {result['top1']:.2f}%{top5}{own}  lr {plan.hyper(self.state.step - 1).lr:.3g}"
            f"{'  *best' if best else ''}"
        )


def _await_device() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _memory() -> dict[str, float]:
    """GB at most in use by this process so far, on its device too where that is a GPU, beside what that has."""
    # In kB on Linux.
    found = {"memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        whole = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        found |= {"device_gb": torch.cuda.max_memory_reserved() / 1e9, "device_has_gb": whole / 1e9}
    return found
