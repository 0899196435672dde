"""The lines by which the ranks of a start check tell what they have found, among whatever else is printed."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

_MARK = "start check: "


def tell(row: dict[str, Any]) -> None:
    """Print a row at once and whole, as ranks share an output."""
    os.write(1, f"{_MARK}{json.dumps(row)}\n".encode())


def told(text: str) -> list[dict[str, Any]]:
    """The rows that were printed."""
    rows = []
    for line in text.splitlines():
        _, mark, row = line.partition(_MARK)
        with contextlib.suppress(ValueError):
            if mark:
                rows.append(json.loads(row))
    return rows
