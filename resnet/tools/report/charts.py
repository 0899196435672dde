"""Line charts as inline SVG, for pages that need nothing beside them.

`html.page` brings their colours, which are CSS variables and so change with light and dark, and the hover values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from resnet.tools.report.html import to_script

TONES = 10
"""Colours that series take in turn, as the CSS variables --tone-0 to --tone-9."""
MOST_POINTS = 600
"""Points of a series that are drawn; of more, the least and the greatest of each stretch, so that spikes stay."""
_WIDTH, _HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 448, 12, 208
_SMOOTHED_FROM = 60
"""Points from which a smoothed series is drawn with its moving mean."""

Point = tuple[float, float | None]


class Series(NamedTuple):
    """A line of a chart. Its points are (x, y) with x not falling; a y of None or NaN leaves a gap."""

    name: str
    points: Sequence[Point]
    style: Literal["line", "smoothed", "measured", "step", "dashed"] = "line"
    """smoothed: faint, under its moving mean; measured: with dots; step: each value holds until the next point."""
    tone: int | None = None
    """Which of the colours; None: the next."""


class Mark(NamedTuple):
    """An event on the x axis."""

    x: float
    name: str
    kind: Literal["restart", "turn", "save"] = "turn"
    """restart and turn: a line from top to bottom; save: a triangle on the axis."""


class Axis(NamedTuple):
    """From a value to a place in the drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str = "epoch",
    unit: str = "",
    marks: Sequence[Mark] = (),
    *,
    from_zero: bool = False,
    log: bool = False,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    whole_x: bool = True,
) -> str:
    """A figure with a title, a legend and the lines; empty where no series has a value.

    from_zero: the y axis begins at 0. log: it is logarithmic, and what is not above 0 leaves a gap.
    x_range, y_range: default: as far as the points reach. whole_x: ticks at whole numbers, as of epochs.
    """
    lines = [
        _Line(item, item.tone if item.tone is not None else index, log)
        for index, item in enumerate(series)
        if any(_drawable(y, log) for _, y in item.points)
    ]
    if not lines:
        return ""
    x_range = x_range or _range([x for line in lines for x, _ in line.points])
    x_axis = Axis(*x_range, _LEFT, _RIGHT)
    values = [y for line in lines for _, y in line.points if y is not None]
    y_axis = Axis(*(y_range or _y_range(values, from_zero, log)), _BOTTOM, _TOP, log)
    marks = [mark for mark in marks if x_axis.low <= mark.x <= x_axis.high]
    body = [*_grid(x_axis, y_axis, whole_x), *(_mark(mark, x_axis) for mark in marks)]
    body += [path for line in lines for path in line.paths(x_axis, y_axis)]
    body.append(f'<text x="{(_LEFT + _RIGHT) / 2:g}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    heading = f"{title}, {unit}" if unit else title
    drawing = (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(_summary(heading, lines, x_label))}">'
        f"{''.join(body)}<g class='at'></g></svg>"
    )
    data = {"x": [*x_axis[:4]], "y": [*y_axis[:4]], "log": log, "label": x_label, "unit": unit}
    data["lines"] = [line.data() for line in lines]
    data["marks"] = [[_round(mark.x, 8), mark.name] for mark in marks]
    return (
        f'<figure class="chart"><figcaption>{escape(heading)}</figcaption>{_legend(lines)}{drawing}'
        f'<script type="application/json">{to_script(data)}</script></figure>'
    )


def charts(*figures: str) -> str:
    """Charts beside one another where the page is wide enough; empty where all are."""
    return f'<div class="charts">{"".join(figures)}</div>' if any(figures) else ""


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about `most` of the points: the first, the last, and each stretch's least and greatest."""
    return [points[index] for index in _kept([y for _, y in points], most)]


def _kept(values: Sequence[float | None], most: int) -> list[int]:
    count = len(values)
    if count <= most:
        return list(range(count))
    kept = {0, count - 1}
    buckets = max(1, most // 2 - 1)
    for bucket in range(buckets):
        stretch = range(bucket * count // buckets, (bucket + 1) * count // buckets)
        known = [(value, index) for index in stretch if (value := values[index]) is not None]
        kept.update((min(known)[1], max(known)[1]) if known else stretch[:1])
    return sorted(kept)


def moving_mean(values: Sequence[float | None]) -> list[float | None]:
    """Centred, over about a thirtieth of the values, fewer at the ends; None where a value is."""
    width = len(values) // 60 + 2
    sums = [0.0, *accumulate(value or 0.0 for value in values)]
    counts = [0, *accumulate(value is not None for value in values)]
    means: list[float | None] = []
    for index, value in enumerate(values):
        low, high = max(0, index - width), min(len(values), index + width + 1)
        means.append(None if value is None else (sums[high] - sums[low]) / (counts[high] - counts[low]))
    return means


class _Line:
    """A series as it is drawn: thinned, without what cannot be drawn."""

    def __init__(self, series: Series, tone: int, log: bool) -> None:
        values = [y if _drawable(y, log) else None for _, y in series.points]
        means = moving_mean(values) if series.style == "smoothed" and len(values) >= _SMOOTHED_FROM else None
        kept = _kept(values, MOST_POINTS)
        self.series, self.tone = series, tone % TONES
        self.points: list[Point] = [(series.points[index][0], values[index]) for index in kept]
        self.means = [means[index] for index in kept] if means else None

    def paths(self, x_axis: Axis, y_axis: Axis) -> list[str]:
        style = self.series.style
        drawn = _path(self.points, x_axis, y_axis, style == "step")
        if self.means is not None:
            mean = _path([(x, y) for (x, _), y in zip(self.points, self.means, strict=True)], x_axis, y_axis)
            return [self._path(drawn, "faint"), self._path(mean, "line")]
        paths = [self._path(drawn, "line dashed" if style == "dashed" else "line")]
        known = [(x, y) for x, y in self.points if y is not None]
        if (style == "measured" and len(known) <= 40) or len(known) == 1:
            paths += [self._dot(x_axis.at(x), y_axis.at(y)) for x, y in known]
        return paths

    def _path(self, drawn: str, kind: str) -> str:
        return f'<path class="{kind}" style="stroke:var(--tone-{self.tone})" d="{drawn}"/>'

    def _dot(self, x: float, y: float) -> str:
        return f'<circle style="fill:var(--tone-{self.tone})" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'

    def data(self) -> dict[str, Any]:
        """What the page's script needs to show values."""
        points = [[_round(x, 8), None if y is None else _round(y)] for x, y in self.points]
        found = {"name": self.series.name, "tone": self.tone, "step": self.series.style == "step", "points": points}
        if self.means is not None:
            found["means"] = [None if mean is None else _round(mean) for mean in self.means]
        return found


def _drawable(value: float | None, log: bool) -> bool:
    return value is not None and math.isfinite(value) and not (log and value <= 0)


def _path(points: Sequence[Point], x_axis: Axis, y_axis: Axis, step: bool = False) -> str:
    parts, pen_is_down = [], False
    for x, y in points:
        if y is not None:
            across, up = f"{x_axis.at(x):.1f}", f"{y_axis.at(y):.1f}"
            on = f"H{across}V{up}" if step else f"L{across} {up}"
            # To go nowhere makes a dot of a point between two gaps.
            parts.append(on if pen_is_down else f"M{across} {up}h0")
        pen_is_down = y is not None
    return "".join(parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        room = abs(low) / 2 or 0.5
        return low - room, high + room
    return low, high


def _y_range(values: Sequence[float], from_zero: bool, log: bool) -> tuple[float, float]:
    low, high = _range([*values, 0.0] if from_zero and not log else values)
    if log:
        return low / 1.1, high * 1.1
    room = 0.05 * (high - low)
    return (low if low == 0 else low - room), high + room


def _grid(x_axis: Axis, y_axis: Axis, whole_x: bool) -> list[str]:
    parts = []
    for value, label in _powers(y_axis) if y_axis.log else ticks(y_axis.low, y_axis.high, 5):
        y = f"{y_axis.at(value):.1f}"
        parts.append(f'<path class="grid" d="M{_LEFT} {y}H{_RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y}" dy="4" text-anchor="end">{label}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_BOTTOM}H{_RIGHT}"/>')
    for value, label in ticks(x_axis.low, x_axis.high, 7, whole=whole_x):
        x = f"{x_axis.at(value):.1f}"
        parts.append(f'<path class="axis" d="M{x} {_BOTTOM}v4"/>')
        parts.append(f'<text x="{x}" y="{_BOTTOM + 18}" text-anchor="middle">{label}</text>')
    return parts


def ticks(low: float, high: float, about: int, whole: bool = False) -> list[tuple[float, str]]:
    """Round numbers from low to high (low < high), about so many, as they are written.

    whole: whole numbers only, where there are at least two of them.
    """
    raw = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= raw * 0.999)
    if whole and step < 1 and math.floor(high) - math.ceil(low) >= 1:
        step = 1.0
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(index * step, _tick(index * step, step)) for index in range(first, last + 1)]


def _tick(value: float, step: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1e13:
        return f"{value:.3g}"
    if abs(value) >= 10_000:
        scale, suffix = (1e9, "G") if abs(value) >= 1e9 else (1e6, "M") if abs(value) >= 1e6 else (1e3, "k")
        return f"{value / scale:.6g}{suffix}"
    if step < 1e-4:
        return f"{value:.3g}"
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _powers(axis: Axis) -> list[tuple[float, str]]:
    """Ticks of a logarithmic axis."""
    decades = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
    factors = (1, 2, 5) if len(decades) <= 3 else (1,)
    every = len(decades) // 8 + 1
    values = [factor * 10.0**decade for decade in decades[::every] for factor in factors]
    return [(value, _tick(value, value) if value >= 1e-3 else f"{value:g}") for value in values
            if axis.low <= value <= axis.high]  # fmt: skip


def _mark(mark: Mark, axis: Axis) -> str:
    x = axis.at(mark.x)
    shape = f"M{x:.1f} {_BOTTOM}l-4 7h8z" if mark.kind == "save" else f"M{x:.1f} {_TOP}V{_BOTTOM}"
    return f'<path class="mark {mark.kind}" d="{shape}"/>'


def _legend(lines: Sequence[_Line]) -> str:
    named = [line for line in lines if line.series.name]
    entries = (
        f'<span><i style="background:var(--tone-{line.tone})"></i>{escape(line.series.name)}</span>' for line in named
    )
    return f'<div class="legend">{"".join(entries)}</div>' if named else ""


def _summary(heading: str, lines: Sequence[_Line], x_label: str) -> str:
    """In words, for those who do not see the drawing."""
    ends = []
    for line in lines:
        x, y = next((x, y) for x, y in reversed(line.points) if y is not None)
        ends.append(f"{line.series.name or 'value'} {y:.4g} at {x_label} {x:.4g}")
    return f"{heading} by {x_label}: {'; '.join(ends[:10])}"


def _round(value: float, digits: int = 5) -> float:
    return float(f"{value:.{digits}g}")
