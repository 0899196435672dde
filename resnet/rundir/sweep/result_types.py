"""What is known of a sweep, its trials and its settings, and how they are called."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

from recipes.text import labels

REPEATED = {"seed": "seed", "data.fold": "fold"}
"""Keys by whose values a setting is tried again, rather than another one, and what one of them is called."""
WAITING = ("queued", "not sent", "unknown")
CELL_MOST = 24
"""Characters of a value in the table."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep, with its results by the sweep's metric."""

    name: str
    point: dict[str, str]
    """Swept key -> text; empty where a search has not chosen it yet."""
    state: str
    """As `resnet.rundir.state.own_rows` has it; or `not sent` (no directory) or `pruned` (by a halving rule)."""
    value: float | None = None
    """Of the best evaluation so far."""
    last: float | None = None
    """Of the last evaluation."""
    best_epoch: float | None = None
    epoch: float | None = None
    """Epochs done, of `epochs`."""
    epochs: float | None = None
    seconds: float = 0.0
    """All attempts together, waiting not counted."""
    gpu_hours: float = 0.0
    eta_s: float | None = None
    failure: str | None = None
    reason: str | None = None
    problem: str | None = None
    """What is wrong with its metrics.jsonl."""
    updated: float | None = None
    run_dir: str | None = None

    @property
    def counts(self) -> bool:
        """Whether its value is a result: that of a trial that was stopped early cannot be compared."""
        return self.state == "finished" and self.value is not None


@dataclass(frozen=True)
class Setting:
    """Trials that differ in their seed or fold alone; where neither was swept, one trial."""

    point: dict[str, str]
    """Without seed and fold."""
    value: float | None
    """Mean over the finished trials; where none is, over the best so far of the others."""
    spread: float | None
    """Sample standard deviation over the finished trials; None for fewer than two."""
    low: float | None
    high: float | None
    done: int
    """Trials that count."""
    states: dict[str, int]
    best_epoch: float | None
    """Mean over the trials of which `value` is the mean."""
    seconds: float
    """Of one trial, the mean over the same."""
    gpu_hours: float
    """Of all its trials together."""
    trials: tuple[str, ...]
    best_trial: str | None
    """The best of the finished trials."""

    @property
    def label(self) -> str:
        told = (f"{label}={shortened(self.point[key])}" for key, label in labels(self.point).items())
        return " ".join(told) or "the recipe"


@dataclass(frozen=True)
class Share:
    """How much of the variance of the finished trials' values one parameter explains alone (eta squared)."""

    key: str
    share: float
    by_chance: float | None
    """What a parameter without effect is expected to explain with so many groups; None for seed or fold."""
    groups: int


@dataclass(frozen=True)
class Comparison:
    """The best setting against the next one."""

    difference: float
    """How much better it is, 0 or more whichever way the metric goes."""
    margin: float | None
    """Half of the 95% interval of the difference (Welch's t); None where a spread is not known."""
    text: str


def repeated(keys: Iterable[str]) -> str | None:
    """What one trial of a setting is called among those of the same: seed or fold, run for both; None: there is one."""
    words = [word for key, word in REPEATED.items() if key in keys]
    return "run" if len(words) > 1 else next(iter(words), None)


def goes_on(trials: Iterable[Trial]) -> bool:
    """Whether a trial is yet to end."""
    return any(trial.state in ("running", *WAITING) for trial in trials)


def shortened(text: str) -> str:
    """A value for a narrow place: long numbers to four digits."""
    with contextlib.suppress(ValueError):
        if len(text) > 7 and not text.lstrip("-").isdigit():
            return f"{float(text):.4g}"
    # Names of recipes often differ at their ends only.
    kept = CELL_MOST // 2 - 1
    return text if len(text) <= CELL_MOST else f"{text[:kept]}..{text[-kept:]}"


def figure(value: float | None, metric: str) -> str:
    return "" if value is None else f"{value:.4g}" if metric == "loss" else f"{value:.2f}"
