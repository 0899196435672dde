"""The file sweep.json, of whatever version: read and written here alone, and fast to import."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.metric import METRICS
from resnet.rundir.files import to_json, write_atomic
from resnet.rundir.find import SWEEP_FILE

FORMAT = 1
"""Of sweep.json: one without a number is of version 0.1.0."""
REQUIRED = ("name", "method", "metric", "fixed", "parameters")
DEFAULTS: dict[str, Any] = {
    "early_stop": None,
    "seed": 0,
    "origins": {},
    "storage": None,
    "cluster": "local",
    "folder": ".",
    "parallel": None,
    "trials": [],
    "created": 0.0,
}
"""Of what a sweep.json may lack: an older version did not know it."""


def read_sweep(sweep_dir: Path) -> dict[str, Any]:
    """The content of sweep.json, older ones as this version writes them; keys of newer versions are kept as they are.

    Raises ValueError where there is none, or it is damaged.
    """
    file = sweep_dir / SWEEP_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if missing := [key for key in REQUIRED if key not in content]:
            raise ValueError(f"no {', '.join(missing)}")
        if not isinstance(content["metric"], str):
            raise ValueError(f"metric {content['metric']!r}")
        if not all(trial["name"] for trial in content.get("trials", [])):
            raise ValueError("a trial without a name")
    except FileNotFoundError:
        raise ValueError(f"{sweep_dir} is not a sweep: it has no {SWEEP_FILE}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is damaged ({error})") from error
    return _lifted(content)


def write_sweep(sweep_dir: Path, content: Mapping[str, Any]) -> None:
    """Replace sweep.json, whose format is what it was if a newer version has written it."""
    told = {**content, "format": max(FORMAT, content.get("format", FORMAT))}
    write_atomic(sweep_dir / SWEEP_FILE, to_json(told, indent=1) + "\n")


def _lifted(content: dict[str, Any]) -> dict[str, Any]:
    at_once = content.pop("jobs", None), content.pop("max_parallel", None)
    older = at_once[0 if content.get("cluster", "local") == "local" else 1]
    chosen = {"order": [*content["fixed"], *content["parameters"]], "goal": METRICS[content["metric"]].goal}
    return {**DEFAULTS, **chosen, "parallel": older, **content}
