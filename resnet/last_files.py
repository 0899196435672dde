"""What a finished run leaves: the weights to use, and a block of lines to read."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.evidence import judge
from recipes.metric import METRICS
from recipes.text import format_duration, plural
from resnet.checkpoint.commit import name_of, newest_valid, step_of
from resnet.checkpoint.snapshot import EMA, MODEL
from resnet.rundir.files import write_atomic
from resnet.rundir.status import read_status

if TYPE_CHECKING:
    from resnet.run_hooks import RunHooks
    from resnet.trainer import Trainer


def summary(trainer: Trainer, hooks: RunHooks, begin: float, first_step: int) -> str:
    """The block of lines that ends a finished run. begin: unix time of the attempt's start, after `first_step`."""
    run_dir, state = hooks.run_dir, trainer.state
    seconds = time.time() - begin
    images = trainer.plan.samples_seen(state.step) - trainer.plan.samples_seen(first_step)
    speeds = sorted(hooks.images_per_second)
    speed = f"{images / max(seconds, 1e-9):.0f} images/s overall"
    speed += f", {speeds[len(speeds) // 2]:.0f} in training" if speeds else ""
    early = f"  {trainer.stopped_early}, at epoch {trainer.plan.epoch(state.step):g}\n" if trainer.stopped_early else ""
    epoch = trainer.plan.epoch(read_status(run_dir)["final_step"])
    return (
        f"\nfinished: {_result(trainer, hooks)}\n{early}"
        f"  time     {format_duration(seconds)} in this attempt; {speed}\n"
        f"  weights  {run_dir / 'final.safetensors'} (epoch {epoch:g})\n"
        f"  metrics  {run_dir / 'metrics.jsonl'}\n"
        f"  report   {run_dir / 'report.html'}"
    )


def write_final_weights(run_dir: Path, best_step: int | None) -> int:
    """Write final.safetensors, as `final_weights` finds them, and return their step."""
    file, step = final_weights(run_dir, best_step)
    write_atomic(run_dir / "final.safetensors", file.read_bytes())
    return step


def final_weights(run_dir: Path, best_step: int | None) -> tuple[Path, int]:
    """The weights of the best checkpoint (its average where there is one), and their step.

    Where that checkpoint is not there (it could not be saved) the newest stands in, and it is said.
    """
    folder = run_dir / "checkpoints"
    checkpoint = folder / name_of(best_step or 0)
    if not checkpoint.is_dir():
        newest = newest_valid(folder, lambda told: print(told, file=sys.stderr))
        if newest is None:
            raise OSError(f"{folder} holds no checkpoint to take the final weights from")
        print(f"the best weights, of step {best_step}, were not saved: {newest.name}'s are taken", file=sys.stderr)
        checkpoint = newest
    file = checkpoint / EMA
    return (file if file.is_file() else checkpoint / MODEL), step_of(checkpoint)


def _result(trainer: Trainer, hooks: RunHooks) -> str:
    """The best and the last evaluation in words, against the recipe's evidence."""
    recipe, state = trainer.recipe, trainer.state
    metric = recipe.eval.metric
    unit = METRICS[metric].unit
    last = hooks.result[metric]
    assert state.best is not None
    assert state.best_step is not None
    words = (
        f"best {metric} {state.best:.4g}{unit} at epoch {trainer.plan.epoch(state.best_step):g}, last {last:.4g}{unit}"
    )
    if math.isnan(state.best):
        words = f"no evaluation gave a {metric} that is a number, so the last weights are taken"
    if hooks.test_result:
        tested = hooks.test_result
        words += f"; test {metric} {tested[metric]:.4g}{unit} of {plural(tested['samples'], 'image')}"
    evidence = recipe.evidence
    if evidence is None or evidence.band is None or metric != "top1":
        return words
    judged = judge(recipe, state.best if evidence.weights == "best" else last, hooks.training_images)
    return f"{words} (the {evidence.weights} is {judged.text})"
