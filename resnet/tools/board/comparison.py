"""comparison.html: several runs on one page, their curves overlaid, with what differs between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recipes.changes import values
from recipes.load import load_file
from recipes.metric import METRICS, cost
from recipes.schema.recipe import Recipe
from recipes.text import cut, format_duration, listed
from resnet.rundir.evaluation import read_evaluation
from resnet.rundir.files import number, read_lines
from resnet.rundir.metrics_log import Point, points_of
from resnet.rundir.provenance import environment_of, read_provenance
from resnet.rundir.state import own_rows
from resnet.tools.board.pages import REASON_MOST, digits, linked, names_of, report_link, state_mark, strided, write_page
from resnet.tools.difference import recipe_differences
from resnet.tools.report.curves import learning_rates
from resnet.tools.report.html import moment, section, show, table

MOST_POINTS = 12_000
"""Points of one chart, shared by its runs: what keeps a page of any number of runs below some megabytes."""
LEAST_POINTS, ENOUGH_POINTS = 40, 500
"""Of one curve."""


class Curve(NamedTuple):
    """A figure over time, as a chart of several runs."""

    key: str
    title: str
    unit: str = ""
    noisy: bool = False
    """Thinned by means, not by leaving values out."""
    can_log: bool = False
    from_zero: bool = False


CURVES = (
    Curve("val/top1", "Validation top-1", "%"),
    Curve("val/loss", "Validation loss", can_log=True),
    Curve("train/loss", "Training loss", noisy=True, can_log=True),
    Curve("train/top1", "Training top-1", "%", noisy=True),
    Curve("lr", "Learning rate", from_zero=True),
    Curve("images_per_second", "Throughput", "images/s", noisy=True, from_zero=True),
    Curve("data_wait", "Share of the time waiting for data", noisy=True, from_zero=True),
    Curve("grad_norm", "Gradient norm", noisy=True, can_log=True),
    Curve("memory_gb", "Memory of a device", "GB", noisy=True, from_zero=True),
)


class Compared(NamedTuple):
    """A run as far as its files can be read."""

    folder: Path
    name: str
    state: dict[str, Any]
    """Of `own_rows`."""
    recipe: Recipe | None
    information: dict[str, Any]
    evaluation: dict[str, Any]
    rows: list[dict[str, Any]]
    problems: tuple[str, ...]


def write_comparison(run_dirs: Sequence[Path], path: Path | None = None) -> Path:
    """Write a page that compares runs, which may still be running, and return its path.

    path: of the page; None: comparison.html in the folder that all the runs lie in, else in the current one.
    Raises ValueError where the page cannot be written.
    """
    together = len({run_dir.absolute().parent for run_dir in run_dirs}) == 1
    path = path or (run_dirs[0].parent if together else Path()) / "comparison.html"
    runs = [_read(run_dir, name) for run_dir, name in zip(run_dirs, names_of(run_dirs), strict=True)]
    title = f"{len(runs)} runs compared"
    sections = [
        f"<h1>{escape(title)}</h1>",
        "".join(f"<p class='bad'>{escape(problem)}</p>" for run in runs for problem in run.problems),
        section("Results", _results(runs, path)),
        section(
            "Curves",
            '<div class="picks runs-shown" id="legend"></div><div class="picks tools" id="tools"></div>'
            '<div class="charts" id="charts"></div>',
        ),
        section("Recipes, where they differ", _recipes(runs)),
        section("Environments, where they differ", _environments(runs)),
    ]
    return write_page(path, title, sections, _data(runs), "comparison.js")


def _read(run_dir: Path, name: str) -> Compared:
    problems: list[str] = []

    def attempt(read: Any, *given: Any, default: Any) -> Any:
        try:
            return read(*given)
        except (ValueError, OSError) as error:
            problems.append(f"{name}: {error}")
            return default

    return Compared(
        run_dir,
        name,
        own_rows([run_dir])[0],
        attempt(lambda: load_file(run_dir / "recipe.yaml").recipe, default=None),
        attempt(read_provenance, run_dir, default={}),
        attempt(read_evaluation, run_dir, default={}),
        attempt(read_lines, run_dir / "metrics.jsonl", default=[]),
        tuple(problems),
    )


def _results(runs: Sequence[Compared], page_file: Path) -> str:
    columns = {
        "state": lambda run: state_mark(run.state["state"]),
        "best top-1": lambda run: _best(run, "top1"),
        "last": lambda run: _last(run, "top1"),
        "best val loss": lambda run: _best(run, "loss"),
        "ECE": lambda run: _figure(run.evaluation.get("ece"), ".2f", "%"),
        "epochs": _epochs,
        "time": lambda run: format_duration(seconds) if (seconds := _seconds(run)) else "",
        "images/s": lambda run: _figure(_speed(run), ",.0f"),
        "started": lambda run: moment(start) if (start := _start(run)) else "",
        "": lambda run: escape(cut(run.state["reason"] or "", REASON_MOST)),
    }
    cells = {heading: [cell(run) for run in runs] for heading, cell in columns.items()}
    cells = {heading: shown for heading, shown in cells.items() if any(shown)}
    names = [_marked(index, linked(run.name, report_link(run.folder, page_file))) for index, run in enumerate(runs)]
    rows = list(zip(names, *cells.values(), strict=True))
    numbers = tuple(index for index, heading in enumerate(["", *cells]) if heading not in ("", "state"))
    missing = [run.name for run in runs if report_link(run.folder, page_file) is None]
    note = f"No report yet of {escape(listed(missing))}: <code>resnet report NAME</code> writes it." if missing else ""
    return table(["run", *map(escape, cells)], rows, numbers, "side named") + (
        f"<p class='soft'>{note}</p>" if note else ""
    )


def _marked(index: int, name: str) -> str:
    """HTML of a run's name after the colour of its curves."""
    path = f'<path d="M1 4H21" style="stroke:var(--tone-{index % 10})"/>'
    return f'<span data-run="{index}"><svg class="swatch" viewBox="0 0 22 8">{path}</svg>{name}</span>'


def _figure(value: Any, form: str, unit: str = "") -> str:
    found = number(value)
    return "" if found is None else format(found, form) + unit


def _best(run: Compared, metric: str) -> str:
    goal = METRICS[metric].goal
    best = min(points_of(run.rows, f"val/{metric}"), key=lambda point: cost(point.value, goal), default=None)
    if best is None:
        return ""
    at = "" if best.epoch is None else f" <span class='soft'>at {best.epoch:.4g}</span>"
    return f"{_value(best.value, metric)}{at}"


def _last(run: Compared, metric: str) -> str:
    points = points_of(run.rows, f"val/{metric}")
    return _value(points[-1].value, metric) if points else ""


def _value(value: float, metric: str) -> str:
    return f"{value:.2f}%" if METRICS[metric].unit == "%" else f"{value:.4g}"


def _epochs(run: Compared) -> str:
    epoch, epochs = run.state["epoch"], run.state["epochs"]
    if epoch is None:
        return ""
    return f"{epoch:.4g}" + (f" of {epochs:g}" if epochs else "")


def _speed(run: Compared) -> float | None:
    speeds = sorted(point.value for point in points_of(run.rows, "images_per_second"))
    return speeds[len(speeds) // 2] if speeds else None


def _attempts(run: Compared) -> list[tuple[float, float]]:
    """Start and end of each attempt, unix times; of one that goes on, or was cut off, its last sign of life."""
    found = []
    for attempt in run.information.get("attempts") or []:
        start, end = number(attempt.get("start")), number(attempt.get("end"))
        end = end if end is not None else run.state["updated"]
        if start is not None and end is not None:
            found.append((start, max(start, end)))
    return found


def _seconds(run: Compared) -> float:
    return sum(end - start for start, end in _attempts(run))


def _start(run: Compared) -> float | None:
    attempts = _attempts(run)
    return attempts[0][0] if attempts else None


def _data(runs: Sequence[Compared]) -> dict[str, Any]:
    """What comparison.js draws: each curve by epoch, by step, and by the time that was spent training."""
    longest = max(map(_seconds, runs), default=0.0)
    unit, seconds = ("hours", 3600.0) if longest > 2 * 3600 else ("minutes", 60.0)
    most = max(LEAST_POINTS, min(ENOUGH_POINTS, MOST_POINTS // max(1, len(runs))))
    charts = []
    for curve in CURVES:
        lines = []
        for index, run in enumerate(runs):
            found = _scheduled(run, most // 2) if curve.key == "lr" else points_of(run.rows, curve.key)
            points = _thinned(found, most, curve.noisy)
            if points:
                spent = _spent(points, _attempts(run))
                x = [
                    [digits(point.epoch) for point in points],
                    [point.step for point in points],
                    [digits(None if time is None else time / seconds) for time in spent],
                ]
                lines.append({"run": index, "x": x, "y": [digits(point.value) for point in points]})
        if lines:
            told = {key: value for key, value in curve._asdict().items() if key != "key"}
            charts.append({**told, "lines": lines})
    return {"axes": ["epoch", "step", f"{unit} of training"], "runs": [run.name for run in runs], "charts": charts}


def _scheduled(run: Compared, most: int) -> list[Point]:
    """The learning rate up to the last step that was logged, each value up to the next: by the schedule itself."""
    logged = points_of(run.rows, "lr")
    if run.recipe is None or not logged:
        return logged
    done = max(point.epoch or 0.0 for point in logged)
    rates = [(x, y) for x, y in learning_rates(run.recipe, run.information.get("plan") or {}, run.rows) if x <= done]
    rates = [rates[index] for index in strided(len(rates), most)]
    corners = [corner for (_, y), (x, after) in pairwise(rates) for corner in ((x, y), (x, after))]
    known = [Point(0.0, 0.0, 0.0, _start(run) or logged[0].time), *logged]
    epochs, *others = ([float(getattr(p, key) or 0.0) for p in known] for key in ("epoch", "step", "time"))
    return [
        Point(y, x, *(float(np.interp(x, epochs, other)) for other in others))
        for x, y in [*rates[:1], *corners]
        if y is not None
    ]


def _thinned(points: Sequence[Point], most: int, noisy: bool) -> list[Point]:
    if len(points) <= most or not noisy:
        return [points[index] for index in strided(len(points), most)]
    found = []
    for bucket in range(most):
        part = points[bucket * len(points) // most : (bucket + 1) * len(points) // most]
        found.append(part[len(part) // 2]._replace(value=sum(point.value for point in part) / len(part)))
    return found


def _spent(points: Sequence[Point], attempts: Sequence[tuple[float, float]]) -> list[float | None]:
    """Seconds of training up to each point: the time between attempts does not count."""
    if not attempts:
        first = next((point.time for point in points if point.time is not None), 0.0)
        return [None if point.time is None else point.time - first for point in points]
    return [
        None if time is None else sum(max(0.0, min(end, time) - start) for start, end in attempts)
        for time in (point.time for point in points)
    ]


def _recipes(runs: Sequence[Compared]) -> str:
    """A row for each key that is not the same in all runs, a column a run."""
    known = [run for run in runs if run.recipe is not None]
    if len(known) < 2:
        return ""
    first = known[0].recipe
    assert first is not None
    changed = [recipe_differences(first, run.recipe) if run.recipe is not None else {} for run in runs]
    keys = dict.fromkeys(key for found in changed for key in found)
    columns = [
        {**values(run.recipe), **{key: pair[1] for key, pair in found.items()}} if run.recipe is not None else {}
        for run, found in zip(runs, changed, strict=True)
    ]
    names = {"recipe": [run.recipe.name if run.recipe else "" for run in runs]}
    names = {key: values for key, values in names.items() if len(set(values)) > 1}
    rows = {**names, **{key: [column.get(key) for column in columns] for key in keys}}
    return _side_by_side(runs, rows) or "<p>The same recipe.</p>"


def _environments(runs: Sequence[Compared]) -> str:
    columns = [environment_of(run.information) for run in runs]
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = {key: [column.get(key) for column in columns] for key in keys}
    return _side_by_side(runs, {key: values for key, values in rows.items() if len({*map(str, values)}) > 1})


def _side_by_side(runs: Sequence[Compared], rows: Mapping[str, Sequence[Any]]) -> str:
    header = ["", *(_marked(index, escape(run.name)) for index, run in enumerate(runs))]
    lines = [
        # Broken, where there is no room, between the parts of a key.
        [
            f"<code>{escape(key).replace('.', '.<wbr>')}</code>",
            *("" if value is None else escape(show(value)) for value in values),
        ]
        for key, values in rows.items()
    ]
    return table(header, lines, style="side named")
