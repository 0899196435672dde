"""sweep.json: a sweep as plain data, which the launcher writes and whatever runs a trial reads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.sweep.points import Distribution, HalvingRule, Sweep, Values
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
        {key: _parameter(fields) for key, fields in data["parameters"].items()},
        tuple(data["order"]),
        metric=data.get("metric"),
        early_stop=HalvingRule(tuple(rule["rungs"]), rule["eta"], rule["strict"]) if rule else None,
        run_cap=data.get("count"),
        name=data.get("name"),
        description=data.get("description"),
        origins=dict(data.get("origins") or {}),
    )


def _parameter(fields: Mapping[str, Any]) -> Values | Distribution:
    if "values" in fields:
        return Values(tuple(fields["values"]), fields["probabilities"] and tuple(fields["probabilities"]))
    return Distribution(**fields)


def read_sweep(sweep_dir: Path) -> dict[str, Any]:
    """The content of sweep.json."""
    return json.loads((sweep_dir / "sweep.json").read_text(encoding="utf-8"))
