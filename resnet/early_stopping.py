"""When a run ends before its last epoch, since its evaluations have become no better."""

from __future__ import annotations

from typing import Any

from recipes.metric import METRICS, cost
from recipes.schema.recipe import Recipe
from recipes.text import plural
from resnet.state import TrainState


def count_evaluation(state: TrainState, recipe: Recipe, result: dict[str, Any]) -> str | None:
    """Count an evaluation into `state.stopping`; the reason to end the run, None: to go on.

    result: as `Tally.read` gives it, the same on all ranks, so that all end.
    """
    settings = recipe.early_stopping
    if settings is None:
        return None
    metric = settings.metric or recipe.eval.metric
    # Another metric than before the run was continued begins anew.
    before = state.stopping if state.stopping.get("metric") == metric else {}
    best, waited, goal = before.get("best"), before.get("waited", 0), METRICS[metric].goal
    better = best is None or cost(result[metric], goal) < cost(best, goal) - settings.min_delta
    # A new one: a checkpoint that is being written has the old.
    state.stopping = {
        "metric": metric,
        "best": result[metric] if better else best,
        "waited": 0 if better else waited + 1,
    }
    if state.stopping["waited"] < settings.patience:
        return None
    least = f" by more than {settings.min_delta:g}" if settings.min_delta else ""
    many = plural(settings.patience, "evaluation")
    return f"stopped early: no {metric} better than {best:.4g}{METRICS[metric].unit}{least} in {many}"
