"""Other runs of the same recipe in the same folder: what a run can be held against."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from launch.why.facts import Facts
from recipes.changes import differences
from recipes.load import load_file
from recipes.schema.recipe import Recipe
from resnet.rundir.files import number, read_json
from resnet.rundir.find import runs_in
from resnet.rundir.provenance import read_provenance
from resnet.rundir.status import status_or_nothing

_READ = 20
"""Runs whose recipes are read, the newest first."""


class Other(NamedTuple):
    """Another run of the same recipe."""

    run_dir: Path
    status: dict[str, Any]
    recipe: Recipe
    provenance: dict[str, Any]
    changes: dict[str, list[Any]]
    """Keys of the recipe whose values differ: its own, and that of the run which is asked about."""


def others(facts: Facts) -> Iterator[Other]:
    """Runs of the same recipe beside a run, the newest first."""
    name, root = facts.status.get("recipe"), facts.run_dir.parent
    if facts.recipe is None or not isinstance(name, str):
        return
    found = [(run, status_or_nothing(run)) for run in runs_in(root) if run.name != facts.run_dir.name]
    found = [(run, status) for run, status in found if status.get("recipe") == name]
    found.sort(key=lambda pair: -(number(pair[1].get("updated")) or 0))
    for run, status in found[:_READ]:
        with contextlib.suppress(ValueError, OSError):
            recipe = load_file(run / "recipe.yaml").recipe
            yield Other(run, status, recipe, read_provenance(run), differences(recipe, facts.recipe))


def data_of(facts: Facts) -> dict[str, Any]:
    """Which data a run was trained on: numbers of images, and the digest of the labels in its newest checkpoint."""
    classes = facts.evaluation.get("classes")
    return {
        "training images": (facts.provenance.get("plan") or {}).get("training_images"),
        "validation images": facts.evaluation.get("samples"),
        "classes": len(classes) if isinstance(classes, list) else None,
        "labels (digest)": _labels(facts.run_dir),
    }


def _labels(run_dir: Path) -> str | None:
    for manifest in sorted((run_dir / "checkpoints").glob("step-*[0-9]/manifest.json"), reverse=True):
        with contextlib.suppress(ValueError, OSError):
            return read_json(manifest).get("data")
    return None
