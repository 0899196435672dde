"""What `model.unfreeze` does, in words."""

from __future__ import annotations

from collections.abc import Mapping


def what_trains(stage: str) -> str:
    """Of a value of `model.unfreeze`."""
    return "the whole network" if stage in ("stem", "all") else f"{stage} and all behind it"


def told(unfreeze: Mapping[int, str]) -> str:
    """From which epochs on what trains; empty: all does, always."""
    parts = [f"from epoch {epoch} on {what_trains(unfreeze[epoch])}" for epoch in sorted(unfreeze)]
    return ", ".join(parts if not unfreeze or 0 in unfreeze else ["at first the classifier alone", *parts])
