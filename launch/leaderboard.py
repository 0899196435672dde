"""What a sweep has found: its trials, its settings ranked, how sure that is, and which hyperparameter mattered.

A trial is one run; a setting is what its trials share when they differ in their seed alone.
"""

from __future__ import annotations

import bisect
import contextlib
import csv
import io
import json
import math
import os
import shlex
import statistics
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from launch.run_state import ROOT, duration
from recipes.rundir import read_provenance, write_atomic
from slurm.batch import read_attempts

STATES = ("finished", "running", "queued", "not sent", "pruned", "stopped", "failed", "damaged", "unknown")
WAITING = ("queued", "not sent", "unknown")
REQUIRED = ("name", "method", "metric", "goal", "parameters", "trials")
METRICS = {"top1": ("top-1", "%"), "top5": ("top-5", "%"), "loss": ("loss", "")}
"""How a metric is called, and its unit."""
BINS, TRIALS_PER_BIN = 4, 3
"""Into how many groups a parameter's values are put where almost every trial has another, and of how many trials."""
CONFIDENCE = 0.95
DROPPED_FIRST = ("GPU-h", "time", "range", "epoch")
"""What is left out on a narrow terminal, in this order."""
CELL_MOST = 20


@dataclass(frozen=True)
class Trial:
    """One run of a sweep, with its results by the sweep's metric."""

    name: str
    point: dict[str, str]
    """Swept key -> text; empty where a search has not chosen it yet."""
    state: str
    """As of `run_state.rows`; or `not sent` (there is no directory), or `pruned` (a halving rule stopped it)."""
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
    updated: float | None = None
    run_dir: str | None = None

    @property
    def counts(self) -> bool:
        """Whether its value is a result: that of a trial that was stopped early cannot be compared."""
        return self.state == "finished" and self.value is not None


@dataclass(frozen=True)
class Setting:
    """Trials that differ in their seed alone; where no seed was swept, one trial."""

    point: dict[str, str]
    """Without the seed."""
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
    """What a parameter without effect is expected to explain with so many groups; None for the seed."""
    groups: int


@dataclass(frozen=True)
class Comparison:
    """The best setting against the next one."""

    difference: float
    """How much better it is, 0 or more whichever way the metric goes."""
    margin: float | None
    """Half of the 95% interval of the difference (Welch's t); None where a spread is not known."""
    text: str


@dataclass(frozen=True)
class Board:
    """A sweep's results."""

    folder: str
    name: str
    method: str
    metric: str
    goal: str
    keys: tuple[str, ...]
    """What is swept."""
    trials: tuple[Trial, ...]
    """In the order of submission."""
    settings: tuple[Setting, ...]
    """Ranked: first those with a finished trial, then those with a value so far."""
    counts: dict[str, int]
    importance: tuple[Share, ...]
    """The largest first, the seed last."""
    comparison: Comparison | None
    gpu_hours: float
    elapsed_s: float
    eta_s: float | None
    """None where it cannot be told."""

    @property
    def best(self) -> Setting | None:
        """The setting that leads; None before a trial has finished."""
        return self.settings[0] if self.settings and self.settings[0].done else None


# Reading


def is_sweep(path: Path | str) -> bool:
    return os.path.isfile(os.path.join(path, "sweep.json"))


def read_sweep(sweep_dir: Path) -> dict[str, Any]:
    """The content of sweep.json and its `folder`; points that a search has chosen since are filled in.

    Raises ValueError where it is not there, or damaged.
    """
    file = sweep_dir / "sweep.json"
    try:
        sweep = json.loads(file.read_text(encoding="utf-8"))
        sweep = {key: sweep[key] for key in REQUIRED} | sweep
        sweep |= {"folder": str(sweep_dir), "trials": [_asked(sweep_dir, trial) for trial in sweep["trials"]]}
    except FileNotFoundError:
        raise ValueError(f"{sweep_dir} is no sweep: it holds no sweep.json") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {error})") from error
    return sweep


def _asked(sweep_dir: Path, trial: dict[str, Any]) -> dict[str, Any]:
    if trial.get("point") is None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return trial | json.loads((sweep_dir / trial["name"] / "slurm" / "point.json").read_bytes())
    return trial


def folders(sweep: Mapping[str, Any]) -> list[Path]:
    """The run directories of the trials that have one, for `run_state.rows`."""
    with os.scandir(sweep["folder"]) as entries:
        there = {entry.name for entry in entries if entry.is_dir()}
    return [Path(sweep["folder"]) / trial["name"] for trial in sweep["trials"] if trial["name"] in there]


def _trial(sweep: Mapping[str, Any], listed: Mapping[str, Any], row: Mapping[str, Any] | None, now: float) -> Trial:
    trial = Trial(listed["name"], listed.get("point") or {}, "not sent")
    if row is None:
        return trial
    run_dir, maximize = row["run_dir"], sweep["goal"] == "maximize"
    found, problem = _evaluations(run_dir, sweep["metric"])
    best = max(found, key=lambda one: one.value if maximize else -one.value, default=None)
    pruned = row["state"] == "stopped" and os.path.exists(f"{run_dir}/slurm/pruned")
    seconds = _seconds(Path(run_dir), row, now)
    devices = 0 if sweep.get("gpus_per_trial") == 0 else sweep.get("ranks") or 1
    return replace(
        trial,
        state="pruned" if pruned else row["state"],
        value=best.value if best else None,
        last=found[-1].value if found else None,
        best_epoch=best.epoch if best else None,
        epoch=row["epoch"] if row["epoch"] is not None else (found[-1].epoch if found else None),
        epochs=row["epochs"],
        seconds=seconds,
        gpu_hours=seconds * devices / 3600,
        eta_s=row["eta_s"],
        failure=row["failure"] or problem,
        reason=row["reason"],
        updated=row["updated"],
        run_dir=run_dir,
    )


class Evaluation(NamedTuple):
    epoch: float | None
    value: float


def _evaluations(run_dir: str, metric: str) -> tuple[tuple[Evaluation, ...], str | None]:
    """The evaluations in metrics.jsonl, in order, and what is wrong with it."""
    try:
        seen = os.stat(f"{run_dir}/metrics.jsonl")
        return _read_evaluations(f"{run_dir}/metrics.jsonl", metric, seen.st_size, seen.st_mtime_ns)
    except FileNotFoundError:
        return (), None
    except OSError as error:
        return (), f"metrics.jsonl: {error.strerror}"


@lru_cache(maxsize=20_000)
def _read_evaluations(path: str, metric: str, *_: int) -> tuple[tuple[Evaluation, ...], str | None]:
    """Decodes only the lines that hold the metric, and a file that has not changed since (*_) only once."""
    with open(path, "rb") as file:
        data = file.read()
    key, found, damaged, position = f'"val/{metric}"'.encode(), [], 0, 0
    while (position := data.find(key, position)) >= 0:
        start, end = data.rfind(b"\n", 0, position) + 1, data.find(b"\n", position)
        if end < 0:
            # A line that is being written.
            break
        position = end
        try:
            row = json.loads(data[start:end])
            epoch, value = row.get("epoch"), row[f"val/{metric}"]
        except (ValueError, AttributeError, KeyError):
            damaged += 1
            continue
        if _finite(value):
            found.append(Evaluation(epoch if _finite(epoch) else None, value))
    return tuple(found), f"metrics.jsonl: {damaged} damaged line{'s' * (damaged > 1)} left out" if damaged else None


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _seconds(run_dir: Path, row: Mapping[str, Any], now: float) -> float:
    """That a trial's attempts took."""
    wrong = (OSError, ValueError, KeyError, TypeError, AttributeError)
    attempts = []
    with contextlib.suppress(*wrong):
        attempts = read_attempts(run_dir)
    # The trainer notes, when it starts again, when it was last seen alive.
    if not attempts or any("end" not in attempt for attempt in attempts[:-1]):
        with contextlib.suppress(*wrong):
            attempts = read_provenance(run_dir).get("attempts") or attempts
    total = 0.0
    for number, attempt in enumerate(attempts, 1):
        start, end = attempt.get("start"), attempt.get("end")
        if end is None and number == len(attempts):
            end = now if row["state"] == "running" else row["updated"]
        if _finite(start) and _finite(end):
            total += max(0.0, end - start)
    return total


# Ranking


def results(sweep: Mapping[str, Any], run_rows: Iterable[Mapping[str, Any]], now: float | None = None) -> Board:
    """A sweep's results so far.

    sweep: of `read_sweep`. run_rows: `run_state.rows(folders(sweep))`. now: unix time.
    """
    now = time.time() if now is None else now
    by_name = {Path(row["run_dir"]).name: row for row in run_rows}
    trials = [_trial(sweep, listed, by_name.get(listed["name"]), now) for listed in sweep["trials"]]
    settings = _ranked(trials, sweep)
    counted = Counter(trial.state for trial in trials)
    end = now if _goes_on(trials) else max((trial.updated or 0 for trial in trials), default=0)
    return Board(
        folder=sweep["folder"],
        name=sweep["name"],
        method=sweep["method"],
        metric=sweep["metric"],
        goal=sweep["goal"],
        keys=tuple(sweep["parameters"]),
        trials=tuple(trials),
        settings=tuple(settings),
        counts={state: counted[state] for state in STATES if counted[state]},
        importance=tuple(_importance(trials, tuple(sweep["parameters"]))),
        comparison=_compare(settings, sweep["metric"]),
        gpu_hours=sum(trial.gpu_hours for trial in trials),
        elapsed_s=max(0.0, end - (sweep.get("created") or end)),
        eta_s=_eta(trials),
    )


def _goes_on(trials: Iterable[Trial]) -> bool:
    return any(trial.state in ("running", *WAITING) for trial in trials)


def _ranked(trials: Sequence[Trial], sweep: Mapping[str, Any]) -> list[Setting]:
    sign = -1 if sweep["goal"] == "maximize" else 1
    members: dict[Hashable, list[Trial]] = {}
    for trial in trials:
        if trial.point:
            # A search may come to the same point twice, which is no second seed.
            alike = tuple(_without_seed(trial.point).items()) if "seed" in trial.point else trial.name
            members.setdefault(alike, []).append(trial)
    settings = [_setting(group, sign) for group in members.values()]
    # Stable: of those that are level, the one that was sent first.
    return sorted(settings, key=lambda one: (not one.done, one.value is None, sign * (one.value or 0)))


def _without_seed(point: Mapping[str, str]) -> dict[str, str]:
    return {key: text for key, text in point.items() if key != "seed"}


def _setting(group: Sequence[Trial], sign: int) -> Setting:
    finished = [trial for trial in group if trial.counts]
    shown = finished or [trial for trial in group if trial.value is not None]
    values = [trial.value for trial in shown if trial.value is not None]
    epochs = [trial.best_epoch for trial in shown if trial.best_epoch is not None]
    best = min(finished, key=lambda trial: sign * (trial.value or 0), default=None)
    return Setting(
        point=_without_seed(group[0].point),
        value=statistics.fmean(values) if values else None,
        spread=statistics.stdev(values) if len(finished) > 1 else None,
        low=min(values, default=None),
        high=max(values, default=None),
        done=len(finished),
        states=dict(Counter(trial.state for trial in group)),
        best_epoch=statistics.fmean(epochs) if epochs else None,
        seconds=statistics.fmean(trial.seconds for trial in shown or group),
        gpu_hours=sum(trial.gpu_hours for trial in group),
        trials=tuple(trial.name for trial in group),
        best_trial=best.name if best else None,
    )


def _compare(settings: Sequence[Setting], metric: str) -> Comparison | None:
    """How sure it is that the first setting is better than the second, by Welch's t: spreads need not be the same."""
    pair = [(one, one.value) for one in settings[:2] if one.done and one.value is not None]
    if len(pair) < 2:
        return None
    (first, high), (second, low) = pair
    difference, points = abs(high - low), " points" if METRICS[metric][1] == "%" else ""
    by = f"{figure(difference, metric)}{points}"
    ahead = f"{first.label} is ahead of {second.label} by {by}"
    if difference == 0:
        ahead = f"{first.label} and {second.label} are level"
    alone = [one.label for one in (first, second) if one.spread is None]
    if alone:
        why = f"one seed of {alone[0]}" if len(alone) == 1 else "one seed each"
        return Comparison(difference, None, f"{ahead}; {why}: no spread is known")
    errors = [((one.spread or 0.0) ** 2 / one.done, one.done - 1) for one in (first, second)]
    variance = sum(error for error, _ in errors)
    if variance == 0:
        return Comparison(difference, 0.0, f"{ahead}; neither varies over its seeds")
    freedom = variance**2 / sum(error**2 / number for error, number in errors)
    margin = t_quantile(freedom) * math.sqrt(variance)
    interval = f"{figure(difference, metric)} ± {figure(margin, metric)}{points} ({CONFIDENCE:.0%})"
    if difference > margin:
        return Comparison(difference, margin, f"{first.label} beats {second.label} by {interval}")
    told = f"{first.label} and {second.label} cannot be told apart by these seeds: {interval}"
    return Comparison(difference, margin, told)


@cache
def t_quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """The t that |T| stays below with this probability; T has Student's distribution, freedom is 1 or more."""
    # P(|T| < sqrt(freedom) tan(x)) is an integral of cos^(freedom - 1) from 0 to x, smooth enough for Simpson's rule.
    freedom, intervals = min(freedom, 1000.0), 200
    scale = 2 * math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    low, high = 0.0, math.pi / 2
    for _ in range(45):
        middle = (low + high) / 2
        width = middle / intervals
        heights = [math.cos(k * width) ** (freedom - 1) for k in range(intervals + 1)]
        area = (heights[0] + heights[-1] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2])) * width / 3
        low, high = (middle, high) if scale * area < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _importance(trials: Sequence[Trial], keys: Sequence[str]) -> list[Share]:
    finished = [trial for trial in trials if trial.counts]
    values = [trial.value for trial in finished if trial.value is not None]
    number, total = len(values), _squares(values)
    if number < 3 or total <= 1e-18 * sum(value**2 for value in values):
        return []
    found = []
    for key in keys:
        if key == "seed":
            continue
        groups = _grouped(_groups([trial.point.get(key, "") for trial in finished]), values)
        if 2 <= len(groups) < number:
            share = 1 - sum(map(_squares, groups)) / total
            found.append(Share(key, max(0.0, share), (len(groups) - 1) / (number - 1), len(groups)))
    found.sort(key=lambda share: -share.share)
    if "seed" in keys:
        groups = _grouped([tuple(_without_seed(trial.point).items()) for trial in finished], values)
        if len(groups) < number:
            found.append(Share("seed", min(1.0, sum(map(_squares, groups)) / total), None, len(groups)))
    return found


def _squares(values: Sequence[float]) -> float:
    """Sum of the squares of the distances from the mean."""
    mean = statistics.fmean(values)
    return sum((value - mean) ** 2 for value in values)


def _groups(texts: Sequence[str]) -> Sequence[Hashable]:
    """The group of each trial by a parameter's value; of numbers that hardly repeat, the quantile that they are in."""
    numbers, distinct = as_numbers(texts), len(set(texts))
    if numbers is None or distinct <= BINS or 2 * distinct <= len(texts):
        return texts
    ordered, bins = sorted(numbers), min(BINS, len(texts) // TRIALS_PER_BIN)
    return [bisect.bisect_left(ordered, number) * bins // len(ordered) for number in numbers]


def _grouped(groups: Iterable[Hashable], values: Iterable[float]) -> list[list[float]]:
    found: dict[Hashable, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        found.setdefault(group, []).append(value)
    return list(found.values())


def as_numbers(texts: Iterable[str]) -> list[float] | None:
    """The values as numbers; None where one of them is none."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _eta(trials: Sequence[Trial]) -> float | None:
    """Seconds to the end, if as many trials run at a time as now and the rest take as long as those that finished."""
    running = [trial for trial in trials if trial.state == "running"]
    waiting = sum(trial.state in WAITING for trial in trials)
    finished = [trial.seconds for trial in trials if trial.state == "finished" and trial.seconds]
    usual = statistics.fmean(finished) if finished else None
    left = [usual and max(0.0, usual - trial.seconds) if trial.eta_s is None else trial.eta_s for trial in running]
    known = [seconds for seconds in left if seconds is not None]
    if not running or len(known) < len(left) or (waiting and usual is None):
        return None
    return max(*known, (sum(known) + waiting * (usual or 0)) / len(running), 0.0)


# Showing


def labels(keys: Iterable[str]) -> dict[str, str]:
    """For each key its last part where that tells it from the others; a group's name and source are called by it."""
    keys = list(keys)
    short = {key: key.removesuffix(".name").removesuffix(".source").rpartition(".")[2] for key in keys}
    taken = Counter(short.values())
    return {key: short[key] if taken[short[key]] == 1 else key for key in keys}


def shortened(text: str) -> str:
    """A value for a narrow place: long numbers to four digits."""
    with contextlib.suppress(ValueError):
        if len(text) > 7 and not text.lstrip("-").isdigit():
            return f"{float(text):.4g}"
    return text if len(text) <= CELL_MOST else f"{text[: CELL_MOST - 2]}.."


def figure(value: float | None, metric: str) -> str:
    return "" if value is None else f"{value:.4g}" if metric == "loss" else f"{value:.2f}"


def lines(board: Board, width: int | None = None, top: int = 10) -> list[str]:
    """A sweep for a terminal. width: columns that the table is to keep within. top: settings that are listed."""
    metric, wins = METRICS[board.metric][0], "highest" if board.goal == "maximize" else "lowest"
    over = f" over {', '.join(board.keys)}" if board.keys else ""
    facts = [
        f"{_plural(len(board.trials), 'trial')}: {_counted(board.counts)}",
        f"{board.gpu_hours:.3g} GPU-hours" if board.gpu_hours else "",
        duration(board.elapsed_s),
        f"about {duration(board.eta_s)} left" if board.eta_s is not None else "",
    ]
    told = [f"{board.name}: {board.method}{over}; the {wins} {metric} wins", f"  {'; '.join(filter(None, facts))}", ""]
    ranked = [setting for setting in board.settings if setting.value is not None]
    told += _table(_columns(board, ranked[:top]), width) if ranked else ["no trial has been evaluated yet"]
    if len(ranked) > top:
        told.append(f"... and {_plural(len(ranked) - top, 'more setting')}")
    comparison = [board.comparison.text] if board.comparison else []
    return [*told, "", *comparison, *_importance_lines(board), *_failures(board), *_best_lines(board)]


def _plural(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {what}" for what, number in counts.items())


def _columns(board: Board, settings: Sequence[Setting]) -> dict[str, list[str]]:
    metric, seeds = board.metric, "seed" in board.keys
    cells: dict[str, Callable[[Setting], str]] = {
        " ".join(METRICS[metric]).strip(): lambda one: figure(one.value, metric),
        "± sd": lambda one: figure(one.spread, metric),
        "range": lambda one: f"{figure(one.low, metric)}-{figure(one.high, metric)}" if seeds else "",
        "done": lambda one: _done(one, seeds),
        "epoch": lambda one: "" if one.best_epoch is None else f"{one.best_epoch:.3g}",
        "time": lambda one: duration(one.seconds) if one.seconds else "",
        "GPU-h": lambda one: f"{one.gpu_hours:.3g}" if one.gpu_hours else "",
    }
    columns = {"#": [str(number) for number in range(1, len(settings) + 1)]}
    for key, label in labels(key for key in board.keys if key != "seed").items():
        columns[label] = [shortened(setting.point.get(key, "")) for setting in settings]
    columns |= {header: [cell(setting) for setting in settings] for header, cell in cells.items()}
    return {header: shown for header, shown in columns.items() if any(shown)}


def _done(setting: Setting, seeds: bool) -> str:
    others = {state: number for state, number in setting.states.items() if state != "finished"}
    if not seeds:
        return "".join(others)
    return ", ".join(filter(None, [f"{setting.done} of {len(setting.trials)}", _counted(others)]))


def _table(columns: Mapping[str, Sequence[str]], width: int | None) -> list[str]:
    widths = {header: max(map(len, [header, *cells])) for header, cells in columns.items()}
    # A character in the last column moves some terminals to the next line.
    most = math.inf if width is None else width - 1
    for header in DROPPED_FIRST:
        if sum(widths.values()) + 2 * (len(widths) - 1) > most:
            widths.pop(header, None)
    rows = [list(widths), *zip(*(columns[header] for header in widths), strict=True)]
    shown = ["  ".join(map(str.rjust, row, widths.values())) for row in rows]
    return [line if len(line) <= most else f"{line[: int(most) - 2]}.." for line in shown]


def _importance_lines(board: Board) -> list[str]:
    if not board.importance:
        return []
    finished = sum(trial.counts for trial in board.trials)
    names = labels(board.keys)
    width = max(len(names[share.key]) for share in board.importance)
    told = [f"what mattered: share of the variance explained alone, over {finished} finished trials"]
    for one in board.importance:
        note = "differences between seeds of a setting" if one.by_chance is None else f"by chance {one.by_chance:.0%}"
        told.append(f"  {names[one.key]:{width}}  {one.share:4.0%}  ({note})")
    return told


def _failures(board: Board) -> list[str]:
    failed = [trial for trial in board.trials if trial.state in ("failed", "damaged")]
    if not failed:
        return []
    kinds = Counter(trial.failure or trial.state for trial in failed)
    first = f"{failed[0].name}: {(failed[0].reason or '').partition(chr(10))[0]}".removesuffix(": ")
    name = board.name if Path(board.folder) == Path(ROOT) / board.name else board.folder
    again = shlex.join(["launch", "retry", name])
    return [f"failed: {_counted(dict(kinds.most_common()))}; again with {again}", f"  {first}"]


def _best_lines(board: Board) -> list[str]:
    if board.best is None:
        return ["no trial has finished yet"]
    so_far = " so far" if _goes_on(board.trials) else ""
    told = [f"best{so_far}: {board.best.label}, {_value_told(board)}"]
    file = best_file(board.folder)
    return [*told, f"  {shlex.join(['launch', 'show', f'recipe={file}'])}"] if file.is_file() else told


def _value_told(board: Board) -> str:
    best, (metric, unit) = board.best, METRICS[board.metric]
    assert best is not None
    value = f"{metric} {figure(best.value, board.metric)}{unit and ' ' + unit}"
    if best.done == 1:
        return f"{value} (one trial)"
    return f"{value} (mean of {best.done} seeds, standard deviation {figure(best.spread, board.metric)})"


def to_object(board: Board) -> dict[str, Any]:
    """For `--json`."""
    best, file = board.best, best_file(board.folder)
    return {
        **{key: getattr(board, key) for key in ("name", "method", "metric", "goal", "counts")},
        **{key: getattr(board, key) for key in ("gpu_hours", "elapsed_s", "eta_s")},
        "leaderboard": [asdict(setting) for setting in board.settings],
        "trials": [asdict(trial) for trial in board.trials],
        "importance": [asdict(share) for share in board.importance],
        "comparison": asdict(board.comparison) if board.comparison else None,
        "best": asdict(best) | {"recipe": str(file) if file.is_file() else None} if best else None,
    }


def to_csv(board: Board) -> str:
    """A row a trial, for `--csv`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "state", *board.keys, f"val/{board.metric}", "best_epoch", "seconds", "gpu_hours"])
    for trial in board.trials:
        point = [trial.point.get(key) for key in board.keys]
        used = [round(trial.seconds, 1), round(trial.gpu_hours, 4)]
        writer.writerow([trial.name, trial.state, *point, trial.value, trial.best_epoch, *used])
    return text.getvalue()


# The winner


def best_file(sweep_dir: Path | str) -> Path:
    return Path(sweep_dir) / "best.yaml"


def write_best(sweep_dir: Path, board: Board) -> Path | None:
    """Keep the recipe of the best setting's best trial as best.yaml, ready to run; returns the file.

    None before a trial has finished, and where the folder cannot be written.
    Raises ValueError where the recipe cannot be read.
    """
    if board.best is None:
        return None
    from recipes.load import dump, load, load_file
    from recipes.schema import Run

    trial = next(trial for trial in board.trials if trial.name == board.best.best_trial)
    # What was trained: the files that the words name may have changed since.
    own = sweep_dir / trial.name / "recipe.yaml"
    if own.is_file():
        recipe = load_file(own).recipe
    else:
        sweep = read_sweep(sweep_dir)
        words = next(listed["words"] for listed in sweep["trials"] if listed["name"] == trial.name)
        recipe = load(words, sweep.get("origins")).recipe
    evidence = recipe.evidence
    if evidence is not None:
        swept = " ".join(f"{key}={text}" for key, text in trial.point.items() if key != "recipe")
        note = f"This is evidence of the recipe before the sweep {board.name} changed it ({swept})."
        evidence = evidence.model_copy(update={"notes": f"{note} {evidence.notes}".strip()})
    wandb = recipe.wandb.model_copy(update={"group": None, "tags": []})
    recipe = recipe.model_copy(update={"run": Run(), "wandb": wandb, "evidence": evidence})
    about = [f"Best of the sweep {board.name}: {board.best.label}", f"{_value_told(board)}; this is {trial.name}"]
    text = "".join(f"# {' '.join(line.split())}\n" for line in about) + dump(recipe)
    file = best_file(sweep_dir)
    with contextlib.suppress(OSError):
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            write_atomic(file, text)
    return file if file.is_file() else None
