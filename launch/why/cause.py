"""What explains how a run is, and what mends it."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["waiting", "failed", "slow", "spiked", "wrong"]


class Cause(NamedTuple):
    """One explanation of how a run is."""

    kind: Kind
    name: str
    """A short id, as data_wait."""
    said: str
    """In a line of plain words."""
    evidence: tuple[str, ...]
    """Up to three lines of figures, each with where it is from."""
    command: str
    """What mends it, as it is typed; empty where there is only to wait."""
    weight: float
    """Orders causes, the largest first.

    1: it alone explains why the run is over or waits. Below: how much of the run's time it costs, or how sure it is.
    Above: what brought about another cause of weight 1, as the step at which the loss rose before it was no number.
    """
    advice: str = "nothing: it goes on by itself"
    """What there is to do where no command does it."""


def in_order(causes: list[Cause]) -> list[Cause]:
    """The weightiest first."""
    return sorted(causes, key=lambda cause: -cause.weight)
