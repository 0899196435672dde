"""Whether an evaluation is one that a recipe's evidence speaks of, and what it says of the result."""

from __future__ import annotations

from pathlib import Path

from recipes.changes import differences
from recipes.evidence import judge
from resnet.checkpoint.commit import name_of
from resnet.run_recipe import load_run_recipe
from resnet.run_weights import FINAL
from resnet.rundir.status import status_or_nothing
from resnet.tools.trained import Trained

_SAME_FIGURES = (
    *("eval.batch_size", "eval.every", "device", "precision", "channels_last", "deterministic", "compile"),
    *("max_batch_per_device", "checkpoint", "data.num_workers", "data.prefetch", "data.cache", "data.stage"),
    "data.max_broken",
)
"""Keys (and groups) that change how an evaluation is computed, and no more than the rounding of what it finds."""


def judged(trained: Trained, top1: float, training_images: int | None) -> str | None:
    """What the end of the run's training would say of its top-1 (percent) beside what the recipe is known to reach.

    None: nothing, as the recipe has no evidence, the run is not finished, or these are not the weights or the
    evaluation that the evidence is of.
    """
    run_dir, recipe = trained.run_dir, trained.recipe
    evidence = recipe.evidence
    if run_dir is None or evidence is None or evidence.band is None or recipe.eval.metric != "top1":
        return None
    changed = differences(load_run_recipe(run_dir).recipe, recipe)
    if any(not _is_among(key) for key in changed) or trained.averaged != recipe.averages:
        return None
    return judge(recipe, top1, training_images).text if _are(trained.weights, run_dir, evidence.weights) else None


def _are(weights: Path, run_dir: Path, which: str) -> bool:
    """Whether these are the `best` or the `last` weights of a finished run."""
    status = status_or_nothing(run_dir)
    if status.get("state") != "finished":
        return False
    best, last = status.get("final_step"), status.get("step")
    wanted = best if which == "best" else last
    if wanted is not None and weights.resolve() == (run_dir / FINAL).resolve():
        return best == wanted
    return wanted is not None and weights.parent.resolve() == (run_dir / "checkpoints" / name_of(int(wanted))).resolve()


def _is_among(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in _SAME_FIGURES)
