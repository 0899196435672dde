"""A sweep as plain data, for sweep.json, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from launch.sweep.sweep_types import Distribution, HalvingRule, Sweep, Values
from recipes.metric import METRICS


def sweep_json(sweep: Sweep) -> dict[str, Any]:
    """The part of sweep.json that says what is searched and how: plain data, of which `sweep_of` makes the sweep."""
    return {
        "name": sweep.name,
        "description": sweep.description,
        "method": sweep.method,
        "metric": sweep.metric,
        "goal": sweep.metric and METRICS[sweep.metric].goal,
        "fixed": sweep.fixed,
        "parameters": {key: _parameter_json(values) for key, values in sweep.parameters.items()},
        "order": [*sweep.order],
        "origins": sweep.origins,
        "early_stop": sweep.early_stop and asdict(sweep.early_stop) | {"rungs": [*sweep.early_stop.rungs]},
        "count": sweep.run_cap,
    }


def _parameter_json(values: Values | Distribution) -> dict[str, Any]:
    if isinstance(values, Values):
        return {"values": [*values.texts], "probabilities": values.probabilities and [*values.probabilities]}
    # JSON has no infinity: what is as by default is left out
    return {name: value for name, value in asdict(values).items() if value not in (math.inf, -math.inf)}


def sweep_of(data: Mapping[str, Any]) -> Sweep:
    """The sweep that the content of sweep.json describes; its notes are not kept."""
    rule = data.get("early_stop")
    return Sweep(
        data["method"],
        dict(data["fixed"]),
        {key: _parameter(content) for key, content in data["parameters"].items()},
        tuple(data["order"]),
        metric=data.get("metric"),
        early_stop=HalvingRule(tuple(rule["rungs"]), **_known(HalvingRule, rule, but="rungs")) if rule else None,
        run_cap=data.get("count"),
        name=data.get("name"),
        description=data.get("description"),
        origins=dict(data.get("origins") or {}),
    )


def _parameter(content: Mapping[str, Any]) -> Values | Distribution:
    if "values" in content:
        chances = content.get("probabilities")
        return Values(tuple(content["values"]), chances and tuple(chances))
    return Distribution(**_known(Distribution, content))


def _known(kind: type[Any], content: Mapping[str, Any], but: str = "") -> dict[str, Any]:
    """What this version knows of the fields of a dataclass."""
    return {one.name: content[one.name] for one in fields(kind) if one.name in content and one.name != but}
