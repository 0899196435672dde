"""Run directories with made-up numbers, written by the program's own writers: for tests of what reads them."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from recipes.load import dump, load
from resnet.rundir.files import to_json
from resnet.rundir.provenance import end_attempt, provenance, record_attempt
from resnet.rundir.status import write_status

STEPS = 10
"""Of an epoch."""


def make_run(
    folder: Path, *changes: str, top1: float = 80.0, epochs: int = 4, state: str = "finished", **status: Any
) -> Path:
    """A run directory whose top-1 rises to `top1`. changes: to quickstart. status: more fields of status.json."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(_recipe(epochs, changes))
    record_attempt(folder, provenance_of("CPU"))
    done = epochs if state == "finished" else epochs / 2
    rows = []
    for step in range(1, int(done * STEPS) + 1):
        at = {"step": step, "epoch": step / STEPS, "time": 1.7e9 + step}
        rows.append(at | {"train/loss": 2 * math.exp(-step / 20), "lr": 0.1, "images_per_second": 100.0})
        if step % STEPS == 0:
            rows.append(at | {"val/top1": top1 * step / STEPS / epochs, "val/loss": 3 - step / STEPS / epochs})
    (folder / "metrics.jsonl").write_text("".join(to_json(row) + "\n" for row in rows))
    differs = dict(change.split("=", 1) for change in changes)
    told = {"name": folder.name, "recipe": "quickstart", "differs": differs, "state": state, "step": int(done * STEPS)}
    told |= {"total_steps": epochs * STEPS, "epoch": done, "epochs": epochs, "images_per_second": 100.0}
    write_status(folder, **told | status)
    if state != "running":
        end_attempt(folder, state, told["step"])
    return folder


def a_sweep(folder: Path, **trials: float | None) -> Path:
    """A sweep over lr by its trials' top-1; None: the trial has failed."""
    for name, top1 in trials.items():
        state: dict[str, Any] = {"state": "failed"} if top1 is None else {"top1": top1}
        make_run(folder / name, "optimizer.lr=0.1", "device=cpu", "wandb.mode=disabled", **state)
    listed = [{"name": name, "point": {"optimizer.lr": name}} for name in trials]
    content = {"name": folder.name, "method": "grid", "metric": "top1", "fixed": {}, "parameters": {"optimizer.lr": {}}}
    (folder / "sweep.json").write_text(to_json(content | {"trials": listed}))
    return folder


@cache
def _recipe(epochs: int, changes: tuple[str, ...]) -> str:
    return dump(load(["recipe=quickstart", f"epochs={epochs}", *changes]).recipe)


@cache
def provenance_of(device: str) -> dict[str, Any]:
    """What an attempt on one device was made of."""
    return provenance(["train.py", "recipe=quickstart"], [device], 1, {"micro_batch": 25})


def page_data(page: Path) -> dict[str, Any]:
    """What a page's scripts read."""
    text = page.read_text(encoding="utf-8")
    return json.loads(text.split('<script type="application/json" id="data">')[1].split("</script>")[0])
