"""The picture of a sweep: its metric against each parameter."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.leaderboard import METRICS, Board, Trial, as_numbers, figure, labels, shortened
from recipes.rundir import write_atomic

PANELS, COLUMNS = 8, 4
DISCRETE = 12
"""Most values of a parameter that get a tick each, and the mean over each of them."""
LOG_DECADES, LOG_METRIC_RATIO = 1.5, 30
DOT, MEAN, BEST = "#4c78a8", "#e4572e", "#222222"


def plot(board: Board, file: Path) -> None:
    """Draw a panel for each swept parameter, those that mattered most where there are more than 8.

    A dot is a trial by its best evaluation, hollow for one that was stopped early or goes on; failed ones are not
    shown. file: PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [trial for trial in board.trials if trial.value is not None and trial.point and trial.state != "failed"]
    keys = _chosen(board)
    columns = min(COLUMNS, max(1, len(keys)))
    rows = max(1, math.ceil(len(keys) / columns))
    size = (max(5.2, 3.2 * columns), 3.0 * rows + 0.9)
    drawing = Figure(figsize=size, dpi=100, layout="constrained")
    FigureCanvasAgg(drawing)
    panels = drawing.subplots(rows, columns, sharey=True, squeeze=False).flat
    for number, (axes, key) in enumerate(zip(panels, keys, strict=False)):
        _panel(axes, board, key, shown)
        if number % columns == 0:
            axes.set_ylabel(" ".join(METRICS[board.metric]).strip())
    for axes in list(panels)[len(keys) :]:
        axes.set_visible(False)
    drawing.suptitle(_title(board, len(shown)), fontsize=11)
    if shown:
        handles, texts = _legend(drawing.axes)
        drawing.legend(handles, texts, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    picture = io.BytesIO()
    drawing.savefig(picture, format="png")
    write_atomic(file, picture.getvalue())
