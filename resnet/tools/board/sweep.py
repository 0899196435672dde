"""A sweep's report.html: curves of all trials, parallel coordinates, the leaderboard, what mattered, and the winner."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from recipes.load import load_file
from recipes.metric import METRICS, cost
from recipes.text import format_duration, labels, plural
from resnet.rundir.metrics_log import Point, read_points
from resnet.rundir.state import own_rows
from resnet.rundir.sweep.axes import Axis, axis_of
from resnet.rundir.sweep.result_types import REPEATED, Setting, Trial, figure, goes_on, repeated, shortened
from resnet.rundir.sweep.results import Board, folders, results, sweep_so_far
from resnet.tools.board.pages import digits, linked, report_link, state_mark, strided, write_page
from resnet.tools.report.charts import ticks
from resnet.tools.report.html import bar, facts, moment, section, show, table
from resnet.tools.report.report import differing

MOST_POINTS, LEAST_POINTS, ENOUGH_POINTS = 40_000, 12, 100
"""Of the curves of one figure in all, and of each trial's."""
SHOWN_SETTINGS = 20
TICKS = 5
"""About so many on an axis of numbers."""


def write_sweep_report(sweep_dir: Path) -> Path:
    """Write a sweep's report.html, from its trials as they are now, and return its path.

    How the trials are is by their own word; Slurm, which knows more of queued ones, is asked by `launch status`.
    Raises ValueError where sweep.json is damaged or the page cannot be written.
    """
    sweep = sweep_so_far(sweep_dir)
    found = results(sweep, own_rows(folders(sweep)))
    path = sweep_dir / "report.html"
    curves = _curves(found)
    drawing = '<div class="picks tools" id="tools"></div><figure class="several" id="curves"></figure>'
    sections = [
        _headline(found),
        _facts(found),
        section("Every trial", _EVERY_TRIAL),
        section("Curves", drawing if curves else ""),
        section("Leaderboard", _leaderboard(found)),
        section("What mattered", _importance(found)),
        section("The winner", _winner(found)),
        section("Trials", _trials(found, path)),
    ]
    return write_page(path, f"Sweep {found.name}", sections, _data(found, sweep, curves), "sweep.js")


_EVERY_TRIAL = """
<p class="soft">A line for each trial: the better, the stronger its colour. The best is red, failed ones are dashed.
  <span class="with-mouse">Drag along an axis to keep a range of it, click the axis to let it go.</span></p>
<div class="scroll"><figure class="several parallel" id="parallel"></figure></div>
"""


def _headline(board: Board) -> str:
    metric, wins = METRICS[board.metric].title, "highest" if board.goal == "maximize" else "lowest"
    over = f" over {', '.join(board.keys)}" if board.keys else ""
    told = [f"{board.method}{over}; the {wins} {metric} wins", f"as of {moment(max(_updates(board), default=0.0))}"]
    lines = [f"<h1>{escape(str(board.name))}</h1>", f"<p class='soft'>{escape(' · '.join(told))}</p>"]
    url = board.wandb_url or ""
    if url.startswith(("https://", "http://")):
        lines.append(f'<p><a href="{escape(url)}">{escape(url)}</a></p>')
    return "".join(lines)


def _updates(board: Board) -> list[float]:
    return [trial.updated for trial in board.trials if trial.updated is not None]


def _facts(board: Board) -> str:
    counted = ", ".join(f"{number} {state}" for state, number in board.counts.items())
    told = [(f"{len(board.trials):,}", f"trials: {counted}", "")]
    if board.best is not None:
        so_far = "best so far" if goes_on(board.trials) else "best"
        spread = f" ± {figure(board.best.spread, board.metric)}" if board.best.spread is not None else ""
        told.insert(0, (_value(board.best.value, board.metric) + spread, f"{so_far}: {board.best.label}", "good"))
    if board.gpu_hours:
        told.append((f"{board.gpu_hours:.3g}", "GPU-hours", ""))
    told.append((format_duration(board.elapsed_s), "since it began" if goes_on(board.trials) else "in all", ""))
    if board.eta_s is not None:
        told.append((format_duration(board.eta_s), "left, about", ""))
    return facts(told)


def _value(value: float | None, metric: str) -> str:
    unit = METRICS[metric].unit
    return figure(value, metric) + (unit if value is not None else "")


def _leaderboard(board: Board) -> str:
    ranked = [setting for setting in board.settings if setting.value is not None]
    if not ranked:
        return "<p>No trial has been evaluated yet.</p>"
    lines = [_setting_row(board, number, setting) for number, setting in enumerate(ranked, 1)]
    keys = labels(key for key in board.keys if key not in REPEATED)
    header = ["#", escape(METRICS[board.metric].label), "± sd", "range", *map(escape, keys.values()), "epoch", "trials"]
    numbers = (1, 2, 3, 4 + len(keys))
    # One seed each has no spread.
    there = [index for index in range(len(header)) if any(line[index] for line in lines)]
    header, lines = [header[index] for index in there], [[line[index] for index in there] for line in lines]
    numbers = tuple(place for place, index in enumerate(there) if index in numbers)
    shown = table(header, lines[:SHOWN_SETTINGS], numbers, "side")
    if rest := lines[SHOWN_SETTINGS:]:
        summary = f"<summary>{plural(len(rest), 'more setting')}</summary>"
        shown += f"<details>{summary}{table(header, rest, numbers, 'side')}</details>"
    return shown + (f"<p>{escape(board.comparison.text)}</p>" if board.comparison else "")


def _setting_row(board: Board, number: int, setting: Setting) -> list[str]:
    index = next((i for i, trial in enumerate(board.trials) if trial.name == setting.best_trial), None)
    mark = "" if index is None else f' data-run="{index}"'
    several = len(setting.trials) > 1 and setting.low is not None
    done = [f"{setting.done} finished"] if setting.done else []
    others = [f"{count} {state}" for state, count in setting.states.items() if state != "finished"]
    return [
        f"<span{mark}>{number}</span>",
        f"<b>{figure(setting.value, board.metric)}</b>" if setting.done else figure(setting.value, board.metric),
        figure(setting.spread, board.metric),
        f"{figure(setting.low, board.metric)} to {figure(setting.high, board.metric)}" if several else "",
        *(escape(shortened(setting.point.get(key, ""))) for key in board.keys if key not in REPEATED),
        "" if setting.best_epoch is None else f"{setting.best_epoch:.3g}",
        escape(", ".join([*done, *others])),
    ]


def _importance(board: Board) -> str:
    names = labels(board.keys)
    rows = []
    for one in board.importance:
        note = (
            f"between {repeated(board.keys)}s of a setting"
            if one.by_chance is None
            else f"by chance {one.by_chance:.0%}"
        )
        rows.append([escape(names[one.key]), f"{one.share:.0%}", note, bar(100 * one.share)])
    told = "<p class='soft'>Share of the variance of the finished trials' values that each key explains alone.</p>"
    return table(["key", "share", "", ""], rows, (1,), "bars") + told if rows else ""


def _winner(board: Board) -> str:
    """The recipe of the best setting's best trial, as far as it differs from the defaults, and how to train it."""
    if board.best is None or board.best.best_trial is None:
        return ""
    try:
        recipe = load_file(Path(board.folder) / board.best.best_trial / "recipe.yaml").recipe
    except (ValueError, OSError) as error:
        return f"<p class='bad'>{escape(str(error))}</p>"
    rows = [[f"<code>{escape(key)}</code>", escape(show(value))] for key, value, _ in differing(recipe)]
    told = f"{board.best.label}: {_value(board.best.value, board.metric)}, best trial {board.best.best_trial}"
    # The first one writes best.yaml, which neither sends its runs to the sweep's folder nor to its page of W&B.
    commands = [["launch", "status", board.folder], ["launch", "local", f"recipe={board.folder}/best.yaml"]]
    return (
        f"<p>{escape(told)}</p><pre>{escape(chr(10).join(map(shlex.join, commands)))}</pre>"
        f"<details><summary>its settings that differ from the defaults</summary>"
        f"{table(['setting', 'value'], rows)}</details>"
    )


def _trials(board: Board, page_file: Path) -> str:
    """Every trial: the best first, then those without a value."""
    places = sorted(range(len(board.trials)), key=lambda index: cost(board.trials[index].value, board.goal))
    rows = []
    for index in places:
        trial = board.trials[index]
        address = report_link(Path(trial.run_dir), page_file) if trial.run_dir else None
        why = trial.problem or (trial.reason or "").partition("\n")[0]
        rows.append([
            f'<span data-run="{index}">{linked(trial.name, address)}</span>',
            state_mark(trial.state),
            figure(trial.value, board.metric),
            figure(trial.last, board.metric),
            "" if trial.epoch is None else f"{trial.epoch:.4g}",
            format_duration(trial.seconds) if trial.seconds else "",
            escape(f"{trial.failure}: {why}" if trial.failure else why),
        ])  # fmt: skip
    header = ["trial", "state", escape(METRICS[board.metric].label), "last", "epochs", "time", ""]
    return f'<div class="tall">{table(header, rows, (2, 3, 4, 5), "side named")}</div>'


def _curves(board: Board) -> dict[str, list[list[Point]]]:
    """By key of metrics.jsonl: the points of each trial; keys that no trial has are left out."""
    keys = dict.fromkeys([f"val/{board.metric}", "val/loss", "train/loss"])
    most = max(LEAST_POINTS, min(ENOUGH_POINTS, MOST_POINTS // max(1, len(board.trials))))
    found = {key: [_points(trial, key, most) for trial in board.trials] for key in keys}
    return {key: curves for key, curves in found.items() if any(curves)}


def _points(trial: Trial, key: str, most: int) -> list[Point]:
    if trial.run_dir is None:
        return []
    try:
        points, _ = read_points(f"{trial.run_dir}/metrics.jsonl", key)
    except OSError:
        return []
    return [points[index] for index in strided(len(points), most)]


def _data(board: Board, sweep: Mapping[str, Any], curves: Mapping[str, list[list[Point]]]) -> dict[str, Any]:
    """What sweep.js draws."""
    order = sorted(range(len(board.trials)), key=lambda index: cost(board.trials[index].value, board.goal))
    ranks = {index: place for place, index in enumerate(order) if board.trials[index].value is not None}
    best = board.best.best_trial if board.best else None
    short = labels(board.keys)
    trials = [
        {
            "name": trial.name,
            "state": trial.state,
            "told": " ".join(f"{short[key]}={shortened(text)}" for key, text in trial.point.items() if key in short),
            "value": digits(trial.value),
            "share": 1 - ranks[index] / max(1, len(ranks) - 1) if index in ranks else None,
            "best": trial.name == best,
        }
        for index, trial in enumerate(board.trials)
    ]
    charts = [
        {
            "title": METRICS[key[4:]].title if key.startswith("val/") else "training loss",
            "unit": METRICS[key[4:]].unit if key.startswith("val/") else "",
            "can_log": key.endswith("loss"),
            "lines": [
                {
                    "run": run,
                    "x": [[digits(point.epoch) for point in points]],
                    "y": [digits(one.value) for one in points],
                }
                for run in reversed(order)
                if (points := lines[run])
            ],
        }
        for key, lines in curves.items()
    ]
    return {"trials": trials, "charts": charts, "axes": _axes(board, sweep)}


def _axes(board: Board, sweep: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The axes of the parallel coordinates: each swept key, and the metric."""
    short, axes = labels(board.keys), []
    for key in board.keys:
        having = [index for index, trial in enumerate(board.trials) if key in trial.point]
        if having:
            said = sweep["parameters"][key]
            texts = [board.trials[index].point[key] for index in having]
            axis = axis_of(texts, drawn="values" not in said, log=bool(said.get("log")))
            axes.append({"name": short[key], **_placed(axis, having, len(board.trials))})
    valued = [index for index, trial in enumerate(board.trials) if trial.value is not None]
    if valued:
        values = [board.trials[index].value or 0.0 for index in valued]
        metric = Axis(values, {}, False, True)
        axes.append({"name": METRICS[board.metric].label, **_placed(metric, valued, len(board.trials))})
    return axes


def _placed(axis: Axis, having: Sequence[int], count: int) -> dict[str, Any]:
    """Where `count` trials and the ticks are, in shares of the axis from its foot; having: trials with a value."""

    def place(value: float) -> float:
        return math.log(value) if axis.log else value

    low, high = min(map(place, axis.positions)), max(map(place, axis.positions))

    def share(value: float) -> float:
        return round((place(value) - low) / (high - low), 4) if high > low else 0.5

    at: list[float | None] = [None] * count
    for index, position in zip(having, axis.positions, strict=True):
        at[index] = share(position)
    marks = [[share(position), text] for position, text in axis.ticks.items()] or _number_ticks(axis, share)
    return {"at": at, "ticks": marks}


def _number_ticks(axis: Axis, share: Any) -> list[list[Any]]:
    low, high = min(axis.positions), max(axis.positions)
    if low == high:
        return [[0.5, f"{low:.6g}"]]
    if not axis.log:
        return [[share(value), text] for value, text in ticks(low, high, TICKS)]
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    values = [10.0**power for power in powers[:: len(powers) // (TICKS + 1) + 1]]
    return [
        [share(value), f"{value:g}"] for value in (values if len(values) > 1 else (low, math.sqrt(low * high), high))
    ]
