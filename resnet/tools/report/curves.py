"""What a run measured over time, as charts: of its results, and of how fast it went."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from recipes.schedules import Span
from recipes.schema.recipe import Recipe
from resnet.rundir.attempts import step_of_name
from resnet.tools.report.charts import MOST_POINTS, Mark, Point, Series, charts, line_chart

Row = Mapping[str, Any]

_WIDE = 50
"""A greatest value this many times the least is drawn on a logarithmic axis."""


def points_of(rows: Sequence[Row], key: str, factor: float = 1.0) -> list[Point]:
    """A column of metrics.jsonl against the epoch; None where a value was not finite."""
    found = ((row["epoch"], row[key]) for row in rows if key in row and row.get("epoch") is not None)
    return [(epoch, None if value is None else factor * value) for epoch, value in found]


def schedule_span(derived: Mapping[str, Any]) -> Span | None:
    """What the schedule of a run spans, by the plan in its provenance.json; None where that does not tell."""
    steps, per_epoch, lr = (derived.get(name) for name in ("total_steps", "steps_per_epoch", "lr"))
    return Span(per_epoch, derived.get("schedule_steps") or steps, lr) if steps and per_epoch and lr else None


def learning_rates(recipe: Recipe, derived: Mapping[str, Any], rows: Sequence[Row]) -> list[Point]:
    """The learning rate against the epoch, to the end of the run: each value holds until the next.

    From the schedule itself, at every step where there are few, and else at enough of them; as it was logged as far as
    that is another, as before a change of the recipe.
    """
    logged = [row for row in rows if row.get("lr") is not None]
    if (span := schedule_span(derived)) is None:
        return points_of(logged, "lr")

    def at(step: int) -> float:
        return recipe.schedule.at(step, span).lr

    end = min(derived["total_steps"], span.total_steps)
    others = (row["step"] for row in logged if row["step"] > end or not _same(at(row["step"] - 1), row["lr"]))
    since = max(others, default=0)
    steps = {
        *range(0, end, max(1, -(-end // MOST_POINTS))),
        end - 1,
        *(step for step, _ in recipe.schedule.turns(span)),
    }
    if end <= MOST_POINTS * span.steps_per_epoch:
        steps.update(range(0, end, span.steps_per_epoch))
    before = [(_begin(row, span), row["lr"]) for row in logged if row["step"] <= since]
    from_schedule = [(step / span.steps_per_epoch, at(step)) for step in sorted(steps) if since <= step < end]
    return [*before, *from_schedule, *((end / span.steps_per_epoch, at(end - 1)) for _ in from_schedule[:1])]


def _begin(row: Row, span: Span) -> float:
    """The epoch at which the step that ended with this row began."""
    return (row["step"] - 1) / span.steps_per_epoch


def _same(first: float, second: float) -> bool:
    return abs(first - second) <= 1e-6 * max(abs(first), abs(second))


def marks_of(run_dir: Path, recipe: Recipe, information: Mapping[str, Any]) -> list[Mark]:
    """What happened at which epoch: attempts that began, turns of the schedule, and the checkpoints that are kept."""
    derived = information.get("plan") or {}
    if (span := schedule_span(derived)) is None:
        return []
    marks = [Mark(step / span.steps_per_epoch, name, "turn") for step, name in recipe.schedule.turns(span)]
    for number, attempt in enumerate(information.get("attempts") or [], 1):
        if number > 1:
            marks.append(Mark(attempt["first_step"] / span.steps_per_epoch, f"attempt {number} begins", "restart"))
    best = _pointer(run_dir / "checkpoints" / "best")
    for path in sorted((run_dir / "checkpoints").glob("step-*")):
        if (step := step_of_name(path.name)) is not None:
            name = f"checkpoint {path.name}" + (", the best" if path.name == best else "")
            marks.append(Mark(step / span.steps_per_epoch, name, "save"))
    return marks


def _pointer(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def result_charts(
    recipe: Recipe, information: Mapping[str, Any], rows: Sequence[Row], marks: Sequence[Mark], classes: int
) -> str:
    """Loss, accuracy, learning rate and gradient norm. classes: how many there are; 0 where it is not known."""
    x_range = _epochs(rows)
    top5 = [Series("validation top-5", points_of(rows, "val/top5"), "measured", 7)] if classes > 5 else []
    loss = [
        Series("training", points_of(rows, "train/loss"), "smoothed", 0),
        Series("validation", points_of(rows, "val/loss"), "measured", 1),
    ]
    accuracy = [
        Series("training top-1", points_of(rows, "train/top1"), "smoothed", 0),
        Series("validation top-1", points_of(rows, "val/top1"), "measured", 1),
        *top5,
    ]
    rates = [Series("", learning_rates(recipe, information.get("plan") or {}, rows), "step", 0)]
    norms = points_of(rows, "grad_norm")
    drawn = charts(
        line_chart("Loss", loss, marks=marks, x_range=x_range, log=_is_wide(loss)),
        line_chart("Accuracy", accuracy, unit="%", marks=marks, x_range=x_range),
        line_chart("Learning rate", rates, marks=marks, from_zero=True) if rows else "",
        line_chart("Gradient norm", [Series("", norms, "smoothed", 0)], marks=marks, x_range=x_range,
                   log=_is_wide([Series("", norms)])),
    )  # fmt: skip
    return drawn and drawn + _key(marks)


def speed_charts(rows: Sequence[Row], marks: Sequence[Mark]) -> str:
    """Throughput, waiting for data, time per epoch, memory, and what else a run logs where it has it."""
    x_range = _epochs(rows)

    def chart(title: str, unit: str, *series: Series, **options: Any) -> str:
        return line_chart(title, series, unit=unit, marks=marks, x_range=x_range, from_zero=True, **options)

    def column(key: str, factor: float = 1.0) -> Series:
        return Series("", points_of(rows, key, factor), "smoothed", 0)

    training, evaluation = seconds_per_epoch(rows)
    unit, length = _unit_of_time([y for _, y in [*training, *evaluation] if y is not None])
    times = [
        Series(name, [(x, None if y is None else y / length) for x, y in points], "measured", tone)
        for name, points, tone in (("training", training, 0), ("save and evaluation", evaluation, 1))
    ]
    return charts(
        chart("Throughput", "images/s", column("images_per_second")),
        chart("Waiting for data", "% of the time", column("data_wait", 100)),
        chart("Time per epoch", unit, *times),
        chart("Memory of a device", "GB", column("memory_gb")),
        chart("Loss scale of fp16", "", column("loss_scale"), log=True),
        chart("Steps skipped by the loss scaler", "", column("skipped_steps")),
        chart("Images of the epoch that could not be read", "", column("broken_images")),
    )


def seconds_per_epoch(rows: Sequence[Row]) -> tuple[list[Point], list[Point]]:
    """Seconds of each whole epoch: in training steps, and from their end to that of the evaluation.

    What an interruption cost is in neither.
    """
    training: dict[int, float] = {}
    evaluation: list[Point] = []
    samples, previous = 0, None
    for row in rows:
        epoch = row.get("epoch")
        if epoch is None:
            continue
        if row.get("images_per_second") and row.get("samples") is not None:
            number = -int(-epoch // 1)
            training[number] = training.get(number, 0.0) + (row["samples"] - samples) / row["images_per_second"]
            samples = row["samples"]
        elif "val/samples" in row and previous is not None and previous.get("step") == row.get("step"):
            evaluation.append((epoch, row["time"] - previous["time"]))
        previous = row
    last = max((row["epoch"] for row in rows if row.get("epoch") is not None), default=0)
    whole: list[Point] = [(float(number), seconds) for number, seconds in training.items() if number <= last]
    return whole, evaluation


def _unit_of_time(seconds: Sequence[float]) -> tuple[str, float]:
    longest = max(seconds, default=0)
    return ("h", 3600.0) if longest >= 7200 else ("min", 60.0) if longest >= 120 else ("s", 1.0)


def _epochs(rows: Sequence[Row]) -> tuple[float, float] | None:
    """From 0 to the last epoch that was logged, so that all charts are in line."""
    last = max((row["epoch"] for row in rows if row.get("epoch") is not None), default=0)
    return (0.0, last) if last > 0 else None


def _is_wide(series: Sequence[Series]) -> bool:
    values = [y for item in series for _, y in item.points if y is not None]
    return bool(values) and min(values) > 0 and max(values) > _WIDE * min(values)


def _key(marks: Sequence[Mark]) -> str:
    return "".join(f"<p class='soft'>{escape(line)}</p>" for line in _explained(marks))


def _explained(marks: Sequence[Mark]) -> Iterator[str]:
    """What the marks mean, a line for each kind."""
    for kind, meaning in (("restart", "Dashed lines: "), ("turn", "Dotted lines: "), ("save", "Triangles: ")):
        found = [f"{mark.name} at epoch {mark.x:.4g}" for mark in marks if mark.kind == kind]
        more = f" and {len(found) - 12} more" if len(found) > 12 else ""
        if found:
            yield f"{meaning}{', '.join(found[:12])}{more}."
