"""What a finished run leaves: the weights to use, the evaluation, pictures, a report, and a block of lines to read."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from resnet.checkpoint import name_of
from resnet.progress import format_duration
from resnet.rundir import read_metrics, write_atomic, write_status
from resnet.snapshot import EMA, MODEL

if TYPE_CHECKING:
    from resnet.hooks import RunHooks
    from resnet.loop import Trainer

MOST_CLASSES_OF_A_MATRIX = 200


def finish(trainer: Trainer, hooks: RunHooks, classes: list[str], begin: float, first_step: int) -> None:
    """Write the final files on rank 0. Trouble with a picture or the report is told and does not fail the run."""
    run_dir, state, recipe = hooks.run_dir, trainer.state, trainer.recipe
    step = _write_final_weights(run_dir, state.best_step)
    result = {**hooks.result, "confusion": hooks.best_confusion} if hooks.best_confusion is not None else hooks.result
    if result:
        rows = [row for row in read_metrics(run_dir) if row.get("step") == step and "val/top1" in row]
        row = rows[-1] if rows else {}
        result = result | {name: row.get(f"val/{name}", result[name]) for name in ("loss", "top1", "top5", "samples")}
        write_evaluation(run_dir, result, classes, step)
        write_status(run_dir, top1=result["top1"], final_step=step)
    report = run_dir / "report.html"
    try:
        from resnet.tools.report import write_report

        report = write_report(run_dir)
    except Exception as error:
        print(f"the report could not be written: {type(error).__name__}: {error}", file=sys.stderr)
    seconds = time.time() - begin
    images = trainer.plan.samples_seen(state.step) - trainer.plan.samples_seen(first_step)
    speeds = sorted(hooks.images_per_second)
    best = f"{state.best:.2f}%" if state.best is not None and recipe.eval.metric != "loss" else f"{state.best}"
    print(
        f"\nfinished: best {recipe.eval.metric} {best} at epoch {trainer.plan.epoch(step or state.step):g}"
        f"{_against_evidence(recipe, state.best)}\n"
        f"  time     {format_duration(seconds)} in this attempt; {images / max(seconds, 1e-9):.0f} img/s overall"
        f"{f', {speeds[len(speeds) // 2]:.0f} in training' if speeds else ''}\n"
        f"  weights  {run_dir / 'final.safetensors'}\n"
        f"  metrics  {run_dir / 'metrics.jsonl'}\n"
        f"  report   {report}",
        flush=True,
    )


def _write_final_weights(run_dir: Path, best_step: int | None) -> int | None:
    """Copy the best checkpoint's weights (its average where there is one), or the newest's; returns their step."""
    folder = run_dir / "checkpoints"
    names = [name_of(best_step)] if best_step is not None else []
    names += sorted((path.name for path in folder.glob("step-*") if path.suffix == ""), reverse=True)
    for name in names:
        for file in (folder / name / EMA, folder / name / MODEL):
            if file.is_file():
                write_atomic(run_dir / "final.safetensors", file.read_bytes())
                return int(name.removeprefix("step-"))
    return None


def write_evaluation(run_dir: Path, result: dict[str, Any], classes: list[str], step: int | None) -> None:
    """evaluation.json: totals, each class's share, and the confusion matrix where it is of a readable size."""
    confusion: torch.Tensor = result["confusion"]
    content = {name: result[name] for name in ("top1", "top5", "loss", "samples")} | {"step": step, "classes": classes}
    content["per_class"] = [
        {"class": name, "samples": int(row.sum()), "correct": int(row[index])}
        for index, (name, row) in enumerate(zip(classes, confusion, strict=True))
    ]
    if len(classes) <= MOST_CLASSES_OF_A_MATRIX:
        content["confusion"] = confusion.tolist()
    write_atomic(run_dir / "evaluation.json", json.dumps(content))


def _against_evidence(recipe: Any, best: float | None) -> str:
    evidence = recipe.evidence
    if best is None or evidence is None or evidence.band is None or recipe.eval.metric != "top1":
        return ""
    low, high = evidence.band
    where = "within" if low <= best <= high else "below" if best < low else "above"
    return f" ({where} the recipe's {low:g}-{high:g}%)"
