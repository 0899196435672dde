"""How figures are told to people."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """As 9s, 4m05s, 1h02m or 3d04h."""
    whole = round(max(0.0, seconds))
    for large, small, names in ((86400, 3600, "dh"), (3600, 60, "hm"), (60, 1, "ms")):
        if whole >= large:
            return f"{whole // large}{names[0]}{whole % large // small:02d}{names[1]}"
    return f"{whole}s"
