"""The picture of a sweep: its metric against each parameter."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.metric import METRICS
from resnet.rundir.files import write_atomic
from resnet.rundir.sweep.axes import Axis, axis_of, spans
from resnet.rundir.sweep.result_types import Trial, figure, repeated
from resnet.rundir.sweep.results import Board

PANELS, COLUMNS = 8, 4
LOG_LOSS_RATIO = 30
"""Of the largest loss to the smallest, from which on its axis is logarithmic."""
LABEL_ROOM = 26
"""Characters that fit beside one another under a panel."""
DOT, MEAN = "#4c78a8", "#e4572e"


def plot(board: Board, file: Path) -> None:
    """Draw a panel for each swept parameter; where there are more than 8, for those that mattered most.

    A dot is a trial by its best evaluation, hollow where it was stopped early or goes on; failed ones are left out.
    file: PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [trial for trial in board.trials if trial.value is not None and trial.state not in ("failed", "damaged")]
    keys = _chosen(board)
    columns = min(COLUMNS, max(1, len(keys)))
    rows = max(1, math.ceil(len(keys) / columns))
    drawing = Figure(figsize=(max(5.0, 3.2 * columns), 2.9 * rows + 0.9), dpi=100, layout="constrained")
    FigureCanvasAgg(drawing)
    panels = list(drawing.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for number, (axes, key) in enumerate(zip(panels, keys, strict=False)):
        _panel(axes, board, key, [trial for trial in shown if key in trial.point])
        if number % columns == 0:
            axes.set_ylabel(METRICS[board.metric].label)
    for axes in panels[len(keys) :]:
        axes.set_visible(False)
    if not shown:
        panels[0].set_yticks([])
    if board.metric == "loss" and shown and spans([trial.value or 0 for trial in shown], LOG_LOSS_RATIO):
        panels[0].set_yscale("log")
    drawing.suptitle(_title(board), fontsize=11, fontweight="bold")
    named = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if named:
        across = 4 if columns > 1 else 2
        drawing.legend(named.values(), named, loc="outside lower center", ncols=across, frameon=False, fontsize=9)
    picture = io.BytesIO()
    drawing.savefig(picture, format="png")
    write_atomic(file, picture.getvalue())


def _chosen(board: Board) -> list[str]:
    mattered = [share.key for share in board.importance]
    first = sorted(board.keys, key=lambda key: mattered.index(key) if key in mattered else len(mattered))[:PANELS]
    return [key for key in board.keys if key in first]


def _title(board: Board) -> str:
    name, best = _plain(board.name), board.best
    if best is None:
        return f"{name}: no trial has finished yet"
    metric, unit, _ = METRICS[board.metric]
    # A label of many parameters would be wider than the picture.
    with_what = f" with {_plain(best.label)}" if len(best.label) <= 40 else ""
    mean = f" (mean of {best.done} {repeated(board.keys)}s)" if best.done > 1 else ""
    return f"{name}: {metric} {figure(best.value, board.metric)}{unit and ' ' + unit}{mean}{with_what}"


def _panel(axes: Any, board: Board, key: str, trials: Sequence[Trial]) -> None:
    axes.set_title(_plain(key), fontsize=10)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if not trials:
        axes.set_xticks([])
        return
    axis = axis_of([trial.point[key] for trial in trials])
    if axis.log:
        axes.set_xscale("log")
    dots = list(zip(axis.positions, trials, strict=True))
    if axis.ticks:
        _ticks(axes, axis)
        _means(axes, axis, dots)
    for label, face, counts in (("finished", DOT, True), ("stopped early or running", "none", False)):
        drawn = [(position, trial.value) for position, trial in dots if trial.counts == counts]
        if drawn:
            x, y = zip(*drawn, strict=True)
            axes.scatter(x, y, s=26, facecolors=face, edgecolors=DOT, linewidths=1, alpha=0.75, label=label, zorder=2)
    for position, trial in dots:
        if board.best and trial.name == board.best.best_trial:
            axes.scatter([position], [trial.value], s=90, marker="*", c="#222222", label="best trial", zorder=4)


def _ticks(axes: Any, axis: Axis) -> None:
    texts = [_plain(text) for text in axis.ticks.values()]
    turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if sum(map(len, texts)) > LABEL_ROOM else {}
    axes.set_xticks(list(axis.ticks), texts, fontsize=9, **turned)
    axes.set_xticks([], minor=True)
    if not axis.log:
        first, last = min(axis.ticks), max(axis.ticks)
        margin = 0.12 * (last - first) if axis.ordered and last > first else 0.5
        axes.set_xlim(first - margin, last + margin)


def _means(axes: Any, axis: Axis, dots: Sequence[tuple[float, Trial]]) -> None:
    """Of the finished trials at each value."""
    values: dict[float, list[float]] = {}
    for position, trial in dots:
        if trial.counts and trial.value is not None:
            values.setdefault(position, []).append(trial.value)
    style = {"linewidth": 1.4} if axis.ordered else {"linewidth": 0, "marker": "_", "markersize": 18, "mew": 2}
    if values:
        x = sorted(values)
        y = [statistics.fmean(values[position]) for position in x]
        axes.plot(x, y, color=MEAN, label="mean of the finished", zorder=3, **style)


def _plain(text: str) -> str:
    # matplotlib reads text between two dollar signs as a formula.
    return text.replace("$", r"\$")
