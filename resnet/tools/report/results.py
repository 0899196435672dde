"""What the best evaluation of a run found, as HTML: what is confused, accuracy by class, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from resnet.tools.report.charts import Series, charts, line_chart
from resnet.tools.report.html import bar, table

DRAWN_CLASSES = 30
"""Most classes whose matrix is shown whole."""
SHOWN_CLASSES = 30
"""Most classes listed with their accuracy."""
SHOWN_PAIRS = 20
"""Most pairs of confused classes listed."""
_HOT = 70
"""Percent from which a cell is so strong in colour that its number is written in the opposite one."""


def heat_map(evaluation: Mapping[str, Any]) -> str:
    """The share of each true class that was taken for each class, in percent; empty for more classes than fit."""
    matrix: Sequence[Sequence[int]] = evaluation.get("confusion") or []
    names = [escape(str(name)) for name in evaluation.get("classes") or []]
    if not 0 < len(matrix) <= DRAWN_CLASSES:
        return ""
    head = "".join(f'<th scope="col" title="{name}"><span>{name}</span></th>' for name in names)
    lines = [
        f'<tr><th scope="row" title="{name}">{name}</th>{"".join(_cells(counts, name, names))}</tr>'
        for name, counts in zip(names, matrix, strict=True)
    ]
    return (
        "<p class='soft'>Percent of each true class (row) that was taken for each class (column).</p>"
        f'<div class="scroll"><table class="heat"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cells(counts: Sequence[int], true: str, names: Sequence[str]) -> list[str]:
    cells, total = [], max(1, sum(counts))
    for count, name in zip(counts, names, strict=True):
        share = 100 * count / total
        style = f' style="--share:{share / 100:.3f}"'
        hot = ' class="hot"' if share > _HOT else ""
        title = f' title="{count:,} of {total:,}: {true} as {name}"' if count else ""
        cells.append(f"<td{hot}{style}{title}>{f'{share:.0f}' if share >= 0.5 else ''}</td>")
    return cells


def confused_pairs(evaluation: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """True class, predicted class and images of what is confused, the most frequent first."""
    if evaluation.get("confused") is not None:
        return [(true, predicted, count) for true, predicted, count in evaluation["confused"]]
    pairs = [
        (true, predicted, count)
        for true, counts in enumerate(evaluation.get("confusion") or [])
        for predicted, count in enumerate(counts)
        if count and true != predicted
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:50]


def confused_table(evaluation: Mapping[str, Any]) -> str:
    """The pairs of classes that are confused most."""
    names = [escape(str(name)) for name in evaluation.get("classes") or []]
    totals = [row["samples"] for row in evaluation.get("per_class") or []]
    rows = []
    for true, predicted, count in confused_pairs(evaluation)[:SHOWN_PAIRS]:
        share = 100 * count / max(1, totals[true])
        rows.append([names[true], names[predicted], f"{count:,} of {totals[true]:,}", f"{share:.1f}%", bar(share)])
    return table(["true class", "taken for", "images", "share", ""], rows, numbers=(2, 3), style="bars pairs")


def class_table(evaluation: Mapping[str, Any]) -> str:
    """Accuracy by class, the worst first."""
    with_images = [row for row in evaluation.get("per_class") or [] if row["samples"]]
    with_images.sort(key=lambda row: row["correct"] / row["samples"])
    lines = []
    for row in with_images[:SHOWN_CLASSES]:
        share = 100 * row["correct"] / row["samples"]
        right = f"{row['correct']:,} of {row['samples']:,}"
        lines.append([escape(str(row["class"])), f"{share:.1f}%", right, bar(share)])
    left_out = len(with_images) - len(lines)
    note = f"<p class='soft'>and {left_out:,} classes that do better</p>" if left_out else ""
    return table(["class", "top-1", "right", ""], lines, numbers=(1, 2), style="bars") + note


def calibration(evaluation: Mapping[str, Any]) -> str:
    """Accuracy against confidence, and how many images have which confidence."""
    bins = [item for item in evaluation.get("calibration") or [] if item["samples"]]
    if not bins:
        return ""
    accuracy = [(item["confidence"], item["accuracy"]) for item in bins]
    shares = [(item["confidence"], 100 * item["samples"] / sum(item["samples"] for item in bins)) for item in bins]
    whole = (0.0, 100.0)
    ideal = Series("as confident as right", [(0, 0), (100, 100)], "dashed", 7)
    drawn = charts(
        line_chart("Accuracy", [Series("measured", accuracy, "measured", 0), ideal], "mean confidence, %", "%",
                   x_range=whole, y_range=whole, whole_x=False),
        line_chart("Images of that confidence", [Series("", shares, "measured", 0)], "mean confidence, %", "%",
                   x_range=whole, from_zero=True, whole_x=False),
    )  # fmt: skip
    ece = evaluation.get("ece")
    error = "" if ece is None else f"Expected calibration error {ece:.2f}%. "
    return (
        f"<p class='soft'>{error}Under the dashed line the network is surer of itself than it is right, above it less "
        f"sure. Each point is one of {len(evaluation['calibration'])} ranges of confidence.</p>{drawn}"
    )
