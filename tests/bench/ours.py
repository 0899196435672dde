"""Our loop as a bench runs it: the real `fit` and hooks, writing a real run directory, without W&B and the loader."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from recipes.plan import Plan, make_plan
from recipes.schema.recipe import Recipe
from resnet.build import build_accelerator, build_state, wrap
from resnet.checkpoint.saver import Saver
from resnet.data.batches import Batch
from resnet.loop import fit
from resnet.process.signals import Signals
from resnet.run_hooks import RunHooks
from resnet.rundir.lease import Lease
from resnet.rundir.metrics_log import MetricsLog
from resnet.rundir.status import write_status
from resnet.tracking.progress import Progress
from resnet.tracking.rank_log import RankLog
from resnet.tracking.wandb_client import NullTracker
from resnet.tracking.watchdog import Watchdog
from resnet.trainer import Trainer
from tests.bench.loops import MEAN, STD, Loop, NextBatch, Setting


def recipe_of(setting: Setting, ranks: int = 1) -> Recipe:
    """The recipe of a run that does what the bench's other loops do. `batch_size`: of one of so many ranks."""
    named = {} if callable(setting.net) else dict(setting.net)
    batch_size = ranks * setting.batch_size
    return Recipe.model_validate(
        {
            "model": named or {"name": "resnet18"},
            "data": {
                "source": "synthetic",
                "samples": batch_size * setting.total_steps,
                "classes": setting.classes,
                "size": setting.size,
            },
            "augment": {"train_size": setting.size, "mean": MEAN, "std": STD},
            "epochs": 1,
            "batch_size": batch_size,
            "optimizer": {
                "name": "sgd",
                "lr": setting.lr,
                "momentum": setting.momentum,
                "weight_decay": setting.weight_decay,
                "weight_decay_norm": 0.0,
                "weight_decay_bias": 0.0,
            },
            "schedule": {"name": "cosine"},
            "grad_clip_norm": setting.clip,
            "ema": {"decay": setting.ema_decay},
            "precision": setting.precision,
            "channels_last": setting.channels_last,
            "compile": setting.compile,
            "log_every": setting.log_every,
            "device": torch.device(setting.device).type,
            "seed": setting.seed,
            "progress": "off",
        }
    )


class HooksUntil(RunHooks):
    """The hooks of a run that asks to stop where a block of steps ends."""

    end = 0

    def after_step(self) -> bool:
        return super().after_step() or self.state.step >= self.end


class Ours(Loop):
    """The real trainer. `fit` runs until its hooks stop it, once a block; lines of progress are not printed."""

    def __init__(self, setting: Setting, next_batch: NextBatch, ranks: int = 1) -> None:
        recipe = recipe_of(setting, ranks)
        accelerator = _fresh(recipe)
        plan = make_plan(recipe, recipe.batch_size * setting.total_steps, accelerator.num_processes)
        state = build_state(recipe, plan, setting.build(), accelerator)
        super().__init__(state.model, average=state.weights)
        network = wrap(recipe, plan, state.model, accelerator, 0)
        self._folder = tempfile.TemporaryDirectory()
        run_dir, rank = Path(self._folder.name), accelerator.process_index
        self.hooks, self._lease, self._log = _open_hooks(run_dir, plan, state, rank)
        self.trainer = Trainer(plan, accelerator, network, state, setting.classes, setting.batch_size, self.hooks)
        self.trainer.batches = _batches(self.trainer, next_batch)

    def __call__(self) -> None:
        self.block(1)

    def block(self, steps: int, mark: Callable[[], object] = lambda: None) -> None:
        self.hooks.end = self.trainer.state.step + steps
        mark()
        outcome = fit(self.trainer)
        mark()
        assert outcome == "stopped", "a bench must end before the run does"

    def close(self) -> None:
        self.hooks.close()
        if self.hooks.metrics is not None:
            self.hooks.metrics.close()
            self._lease.release()
        self._log.close()
        self._folder.cleanup()


def _fresh(recipe: Recipe) -> Accelerator:
    """An accelerator of this recipe, also after one of another device or precision; threads stay as they are."""
    threads = torch.get_num_threads()
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(True)
    accelerator = build_accelerator(recipe)
    torch.set_num_threads(threads)
    return accelerator


def _open_hooks(run_dir: Path, plan: Plan, state: Any, rank: int) -> tuple[HooksUntil, Lease, RankLog]:
    lease, metrics = Lease(run_dir), None
    if rank == 0:
        lease.acquire()
        metrics = MetricsLog(run_dir / "metrics.jsonl")
        write_status(run_dir, name="bench", state="running", step=0, total_steps=plan.total_steps, attempts=1)
    log = RankLog(run_dir, rank)
    saver = Saver(run_dir, plan, [], {"digest": ""}, lease if rank == 0 else None, writes=rank == 0)
    progress = Progress("off", plan.end_step, plan.steps_per_epoch)
    names = [str(number) for number in range(state.model.fc.out_features)]
    assert plan.recipe.watchdog
    watchdog = Watchdog(plan.recipe.watchdog, log, 0)
    hooks = HooksUntil(
        run_dir, plan, state, saver, Signals(), progress, metrics, NullTracker(), names, plan.samples, watchdog
    )
    return hooks, lease, log


def _batches(trainer: Trainer, next_batch: NextBatch) -> Iterator[Batch]:
    keys = trainer.keys()
    for key in keys:
        images, labels = next_batch()
        yield Batch(key, images, labels, None, [])
