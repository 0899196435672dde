"""Runs that failed."""

from __future__ import annotations

from pathlib import Path

from tests.launch.planted import Place, fault


@fault("failed", "nan")
def learning_rate_far_too_high(place: Place) -> Path:
    """A learning rate so high that the loss is no number soon."""
    return place.train("nan", "optimizer.lr=1e30", "epochs=1")
