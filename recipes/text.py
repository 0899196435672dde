"""How durations and keys are told to people."""

from __future__ import annotations

import re
from collections.abc import Iterable


def format_duration(seconds: float) -> str:
    """As 9s, 4m05s, 1h02m or 3d04h."""
    whole = round(max(0.0, seconds))
    for large, small, names in ((86400, 3600, "dh"), (3600, 60, "hm"), (60, 1, "ms")):
        if whole >= large:
            return f"{whole // large}{names[0]}{whole % large // small:02d}{names[1]}"
    return f"{whole}s"


def labels(keys: Iterable[str]) -> dict[str, str]:
    """For each key its last parts, as many as tell it from the others; a variant's key is called by its group."""
    found = {}
    paths = {key: re.sub(r"(?<=.)\.(name|source)$", "", key).split(".") for key in keys}
    for key, path in paths.items():
        for length in range(1, len(path) + 1):
            label = path[-length:]
            if not any(other[-length:] == label for name, other in paths.items() if name != key):
                break
        else:
            label = key.split(".")
        found[key] = ".".join(label)
    return found
