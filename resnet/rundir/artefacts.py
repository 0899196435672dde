"""artefact.json: what a network became (exported, quantised, pruned), of what, how, and at what cost."""

from __future__ import annotations

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
    files = [run_dir / NAME, *sorted((run_dir / EXPORTS).glob(f"*/{NAME}"))]
    return [{"name": file.parent.name, **read_json(file)} for file in files if file.is_file()]
