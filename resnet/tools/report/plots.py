"""Pictures of a run: its curves and its confusion matrix."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet.rundir.files import write_atomic

ANNOTATED_CLASSES = 30
"""Most classes whose matrix is drawn whole."""
SHOWN_CLASSES = 20
"""Classes drawn of a larger matrix: those confused most."""
TRAIN, VALIDATION, GREY = "#4c78a8", "#e4572e", "#767676"


def draw_curves(
    rows: Sequence[dict[str, Any]], path: Path, rates: Sequence[tuple[float, float | None]], top5: bool
) -> None:
    """Draw loss, accuracy, learning rate and throughput against the epoch.

    rows: of metrics.jsonl; keys that no row has draw nothing.
    path: file to write; its suffix is the format (.png, .svg).
    rates: learning rates against the epoch, each until the next. top5: draw it, where that says something.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 6.4), dpi=150)
    FigureCanvasAgg(figure)
    # Margins that are given cost nothing; to find tight ones, matplotlib draws all of it once more.
    figure.subplots_adjust(left=0.075, right=0.985, bottom=0.075, top=0.95, hspace=0.28, wspace=0.17)
    (loss, accuracy), (rate, speed) = figure.subplots(2, 2)
    _line(loss, rows, "train/loss", "training", TRAIN)
    _line(loss, rows, "val/loss", "validation", VALIDATION, measured=True)
    _line(accuracy, rows, "train/top1", "training top-1", TRAIN)
    _line(accuracy, rows, "val/top1", "validation top-1", VALIDATION, measured=True)
    if top5:
        _line(accuracy, rows, "val/top5", "validation top-5", GREY, measured=True)
    if rates:
        rate.step(*np.array(rates, dtype=float).T, where="post", color=TRAIN, linewidth=1.4)
    _line(speed, rows, "images_per_second", "", TRAIN)
    for axes in (rate, speed):
        axes.set_ylim(bottom=0)
        axes.set_xlabel("epoch")
    for axes, title, unit in (
        (loss, "Loss", ""),
        (accuracy, "Accuracy", "%"),
        (rate, "Learning rate", ""),
        (speed, "Throughput", "images/s"),
    ):
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.set_ylabel(unit)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=9)
    _save(figure, path)


def _line(
    axes: Any,
    rows: Sequence[dict[str, Any]],
    key: str,
    label: str,
    color: str,
    measured: bool = False,
) -> None:
    points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None and row.get("epoch") is not None]
    if not points:
        return
    x, y = np.array(points, dtype=float).T
    if measured:
        axes.plot(x, y, color=color, label=label, linewidth=1.6, marker="o", markersize=4 if len(x) <= 30 else 0)
    elif len(x) < 60:
        axes.plot(x, y, color=color, label=label, linewidth=1.4)
    else:
        axes.plot(x, y, color=color, linewidth=0.6, alpha=0.3)
        axes.plot(x, _smooth(y, len(y) // 60 + 2), color=color, label=label, linewidth=1.6)


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Centred moving mean over 2 * width + 1 values, fewer at the ends."""
    window = np.ones(2 * width + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


def draw_range(
    lrs: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    marks: Mapping[str, float],
    title: str,
    path: Path,
) -> None:
    """Draw the losses of a learning-rate range test against the rate, and rates that are suggested, by name.

    path: file to write; its suffix is the format (.png, .svg).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(lrs, losses, color=TRAIN, linewidth=0.8, alpha=0.4, label="each step")
    axes.plot(lrs, smoothed, color=TRAIN, linewidth=1.8, label="averaged over neighbours")
    for (name, lr), style in zip(marks.items(), ("-", "--"), strict=False):
        axes.axvline(lr, color=VALIDATION, linewidth=1.2, linestyle=style, label=f"{name}: {lr:.2g}")
    if smoothed:
        low, high = min(smoothed), max(smoothed[: len(smoothed) // 2 + 1])
        # Losses of a divergence would press all others flat.
        axes.set_ylim(low - 0.1 * (high - low or 1), high + 0.6 * (high - low or 1))
    axes.set_xscale("log")
    axes.set_xlabel("optimizer.lr")
    axes.set_ylabel("training loss")
    axes.set_title(_short(title, 60), loc="left", fontsize=11, fontweight="bold")
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    _save(figure, path)


def most_confused(matrix: np.ndarray, count: int) -> np.ndarray:
    """Indices, in order, of the classes with the most mistakes in their row or column of a (C, C) matrix of counts."""
    wrong = matrix - np.diag(np.diag(matrix))
    return np.sort(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:count])


def draw_confusion(counts: Any, classes: Sequence[str], path: Path) -> None:
    """Draw the share, in percent, of each true class (row) that was taken for each class (column).

    counts: (C, C), [true, predicted].
    classes: C names. Of more than 30 classes the 20 that are confused most are drawn, with the rest as a last column.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matrix = np.asarray(counts)
    assert matrix.shape == (len(classes), len(classes)), (matrix.shape, len(classes))
    share = 100 * matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    names, title = [_short(name) for name in classes], "Confusion, % of each true class"
    columns = names
    if len(names) > ANNOTATED_CLASSES:
        chosen = most_confused(matrix, SHOWN_CLASSES)
        rest = 100 * (matrix[chosen].sum(1) > 0) - share[np.ix_(chosen, chosen)].sum(1)
        share = np.column_stack([share[np.ix_(chosen, chosen)], rest])
        title = f"{title}: the {SHOWN_CLASSES} classes confused most, of {len(classes)}"
        names = [names[index] for index in chosen]
        columns = [*names, "(others)"]
    side = max(4.5, 0.42 * len(names) + 2)
    figure = Figure(figsize=(side + 0.6, side), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    figure.suptitle(title, fontsize=10, fontweight="bold")
    for row, column in np.argwhere(share >= 0.5):
        value = share[row, column]
        color = "white" if value > 55 else "#222222"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=color)
    _save(figure, path)


def _short(name: str, length: int = 22) -> str:
    # matplotlib reads text between two dollar signs as a formula.
    name = name.replace("$", r"\$")
    return name if len(name) <= length else name[: length - 1] + "…"


def _save(figure: Any, path: Path) -> None:
    """Whole or not at all, in the format that the path's suffix names."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:])
    write_atomic(path, content.getvalue())
