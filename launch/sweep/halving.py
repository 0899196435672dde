"""Early stopping: whether a trial goes on. Called by whatever runs a trial, from many nodes.

It is not Optuna's: SuccessiveHalvingPruner has its rungs at min_resource * eta^k, eta a whole number, so that W&B's
brackets (max_iter / eta^k, eta any number above 1) cannot be said; it judges by the newest value, not the rung's, it
stops the second trial of a sweep if that is the worse of two, and it needs every evaluation of every grid and random
trial in Optuna's storage. HyperbandPruner adds brackets that W&B's `hyperband` does not have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from launch.sweep.lock import locked
from launch.sweep.study import values
from launch.sweep.sweep_json import sweep_of
from recipes.metric import METRICS, best_of, cost
from resnet.rundir.attempts import end_file
from resnet.rundir.files import append_line, read_lines
from resnet.rundir.sweep.sweep_file import read_sweep


def should_stop(sweep_dir: Path, trial: str) -> tuple[int, float] | None:
    """Whether successive halving (ASHA, Li et al. 2018, arXiv:1810.05934) stops a trial: rung and value, or None.

    At each rung it reaches (a number of evaluations) a trial is judged once: it goes on if it is among the best 1/eta
    of the trials that have reached the rung so far, itself one of them, and while those are fewer than eta. The
    judgement is kept in slurm/rungs.jsonl, so that what comes later does not change it. For trials of any method;
    call it after each evaluation, and once a trial has finished, so that others are compared with it.
    """
    sweep = sweep_of(read_sweep(sweep_dir))
    rule, metric = sweep.early_stop, sweep.metric
    if rule is None or metric is None:
        return None
    seen = values(sweep_dir / trial, metric)
    reached = [rung for rung in rule.rungs if rung <= len(seen)]
    judged = _judgements(sweep_dir) if reached else {}
    if all((rung, trial) in judged for rung in reached):
        return _stopped(judged, trial, reached)
    with locked(sweep_dir):
        judged = _judgements(sweep_dir)
        for rung in reached:
            if (rung, trial) not in judged:
                best = best_of(seen[:rung], METRICS[metric].goal)
                value = seen[rung - 1] if rule.strict else math.nan if best is None else best
                rivals = [other for (at, _), (other, _) in judged.items() if at == rung]
                stop = not goes_on(value, rivals, rule.eta, METRICS[metric].goal)
                judged[rung, trial] = value, stop
                _record(sweep_dir, trial, rung, value, stop)
            if judged[rung, trial][1]:
                break
    return _stopped(judged, trial, reached)


def goes_on(value: float, rivals: Iterable[float], eta: float, goal: str) -> bool:
    """Whether a value is among the best 1/eta of it and its rivals, or they are fewer than eta. NaN is the worst."""
    costs = [cost(rival, goal) for rival in rivals]
    number = 1 + len(costs)
    return number < eta or sum(rival < cost(value, goal) for rival in costs) < math.floor(number / eta)


def let_go_on(sweep_dir: Path, trial: str) -> None:
    """Let a trial that was stopped be continued: the rung that stopped it does so no more."""
    with locked(sweep_dir):
        for (rung, name), (value, stop) in _judgements(sweep_dir).items():
            if name == trial and stop:
                _record(sweep_dir, trial, rung, value, False)


def _stopped(
    judged: Mapping[tuple[int, str], tuple[float, bool]], trial: str, rungs: Iterable[int]
) -> tuple[int, float] | None:
    stops = ((rung, *judged.get((rung, trial), (0.0, False))) for rung in rungs)
    return next(((rung, value) for rung, value, stop in stops if stop), None)


def _judgements(sweep_dir: Path) -> dict[tuple[int, str], tuple[float, bool]]:
    """(rung, trial) -> value, whether it was stopped. A line that cannot be read is left out."""
    file = sweep_dir / "slurm" / "rungs.jsonl"
    found = {}
    for row in read_lines(file):
        found[row["rung"], row["trial"]] = math.nan if row["value"] is None else row["value"], row["stop"]
    return found


def _record(sweep_dir: Path, trial: str, rung: int, value: float, stop: bool) -> None:
    """Append a judgement; under the lock, since two nodes that append at once overwrite each other on NFS."""
    row = {"trial": trial, "rung": rung, "value": value, "stop": stop}
    append_line(sweep_dir / "slurm" / "rungs.jsonl", row)


def is_pruned(run_dir: Path, state: str | None) -> bool:
    """Whether early stopping ended a trial, and not something else."""
    return state not in ("finished", "failed") and end_file(run_dir, "pruned").exists()
