"""A sweep in W&B's own format, the inverse of `wandb_sweep`."""

from __future__ import annotations

from typing import Any

from launch.sweep.sweep_types import Distribution, Sweep, Values
from recipes.keys import takes_text
from recipes.load import parse_value
from recipes.metric import METRICS
from recipes.schema.recipe import NOT_TRAINING


def to_wandb(sweep: Sweep) -> dict[str, Any]:
    """What `wandb.sweep` takes, and `wandb_sweep.from_file` reads as a sweep of the same trials.

    Left out: early stopping, of which only some rungs can be said in this format, and keys that train nothing.
    """
    given = {key: Values((text,)) for key, text in sweep.fixed.items()} | sweep.parameters
    told: dict[str, Any] = {"method": sweep.method, "name": sweep.name, "description": sweep.description}
    goal = sweep.metric and METRICS[sweep.metric].goal
    told |= {"metric": {"name": f"val/{sweep.metric}", "goal": goal} if sweep.metric else None}
    told |= {"run_cap": sweep.run_cap, "program": "train.py"}
    parameters = {key: _parameter(key, given[key]) for key in sweep.order if key.partition(".")[0] not in NOT_TRAINING}
    return {key: value for key, value in told.items() if value is not None} | {"parameters": parameters}


def _parameter(key: str, values: Values | Distribution) -> dict[str, Any]:
    if isinstance(values, Distribution):
        return _distribution(values)
    items = [text if takes_text(key) else parse_value(text) for text in values.texts]
    if len(items) == 1:
        return {"value": items[0]}
    return {"values": items} | ({"probabilities": [*values.probabilities]} if values.probabilities else {})


def _distribution(found: Distribution) -> dict[str, Any]:
    name, settings = {
        "int_uniform": ("int_uniform", {"min": found.low, "max": found.high}),
        "uniform": ("log_uniform_values" if found.log else "uniform", {"min": found.low, "max": found.high}),
        "normal": ("log_normal" if found.log else "normal", {"mu": found.mu, "sigma": found.sigma}),
        "beta": ("beta", {"a": found.a, "b": found.b}),
    }[found.kind]
    if found.step is None:
        return {"distribution": name, **settings}
    return {"distribution": f"q_{name}", **settings, "q": found.step}
