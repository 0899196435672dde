"""artefact.json: what a network became (exported, quantised, pruned), of what, how, and at what cost."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from resnet.rundir.files import read_json

FORMAT = 1
NAME = "artefact.json"
EXPORTS = "exports"
"""Folder of a run's artefacts, by name."""


def read_records(run_dir: Path) -> list[dict[str, Any]]:
    """Of a run itself, where another one became it, and of each of its artefacts in their names' order.

    `name` is added. Raises ValueError where one is damaged.
    """
    artefacts = sorted((run_dir / EXPORTS).glob(f"*/{NAME}"))
    # A name with a dot is that of one that is being made, or was left when its process was killed.
    files = [run_dir / NAME, *(file for file in artefacts if not file.parent.name.startswith("."))]
    return [{**read_json(file), "name": file.parent.name} for file in files if file.is_file()]


def is_export(folder: Path) -> bool:
    """Whether a folder is what a run was exported as, which may hold a recipe.yaml, too, and is no run."""
    with contextlib.suppress(ValueError, OSError):
        return read_json(folder / NAME).get("kind") == "export"
    return False
