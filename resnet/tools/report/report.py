"""report.html: one file that explains a run to a person, made from nothing but the run directory."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from recipes.evidence import Judgement, judge, told
from recipes.load import load_file
from recipes.metric import METRICS, cost
from recipes.schema.recipe import NOT_TRAINING, Recipe
from recipes.schema.training import Evidence
from recipes.text import format_duration
from resnet.process.command_lines import accelerate_command
from resnet.run_recipe import load_run_recipe
from resnet.rundir.attempts import newest_step
from resnet.rundir.evaluation import read_evaluation
from resnet.rundir.files import write_atomic
from resnet.rundir.metrics_log import SLOW_RANKS, read_metrics
from resnet.rundir.provenance import read_provenance
from resnet.rundir.status import read_status
from resnet.tools.report.artefacts import artefact_table
from resnet.tools.report.curves import learning_rates, marks_of, result_charts, speed_charts
from resnet.tools.report.html import counted, facts, mapping, moment, page, section, show, table
from resnet.tools.report.html import pictures as tiles
from resnet.tools.report.pictures import Pictures, kept_pictures, make_pictures
from resnet.tools.report.results import calibration, class_table, confused_table, heat_map
from resnet.tools.report.spent import spent_bar

if TYPE_CHECKING:
    from resnet.data.sources.source import Source

_SILENT = 900
"""Seconds after which a running run that has written nothing is said to be silent."""


def write_report(run_dir: Path, sources: tuple[Source, Source] | None = None, page_only: bool = False) -> Path:
    """Write report.html, with curves.png and confusion.png beside it, and return its path.

    Reads recipe.yaml, status.json, provenance.json, metrics.jsonl, evaluation.json, the records of artefacts and the
    names of the checkpoints; all but the first may be missing.
    sources: training and validation images where they are open already (else see `make_pictures`).
    page_only: no PNG is drawn and no image read, for when time is short.
    Raises ValueError where one of the files is damaged.
    """
    recipe = load_file(run_dir / "recipe.yaml").recipe
    status, information, rows = read_status(run_dir), read_provenance(run_dir), read_metrics(run_dir)
    evaluation = read_evaluation(run_dir)
    derived = information.get("plan") or {}
    if page_only:
        pictures = kept_pictures(run_dir, evaluation)
    else:
        pictures = make_pictures(run_dir, load_run_recipe(run_dir).recipe, derived, evaluation, sources)
        _draw(run_dir, recipe, derived, rows, evaluation)
    name = str(status.get("name") or run_dir.resolve().name)
    marks, classes = marks_of(run_dir, recipe, information), len(evaluation.get("classes") or ())
    sections = [
        _headline(name, recipe, status),
        _facts(recipe, status, information, rows, evaluation),
        section("Curves", result_charts(recipe, information, rows, marks, classes)),
        section("Most confident mistakes", _mistakes(pictures, bool(evaluation.get("mistakes")))),
        section("Confusion", heat_map(evaluation)),
        section("Classes confused most", confused_table(evaluation)),
        section("Accuracy by class, worst first", class_table(evaluation)),
        section("Calibration", calibration(evaluation)),
        section("Training images as the network gets them", _training_images(pictures)),
        section("What it became", artefact_table(run_dir)),
        section("Speed", speed_charts(rows, marks)),
        section("Where the time went", spent_bar(run_dir, status.get("state"))),
        section("Attempts", _attempts(information.get("attempts") or [])),
        section("Settings that differ from the defaults", _settings(recipe)),
        section("What followed from them", mapping(derived)),
        section("Evidence of the recipe", mapping(_evidence(recipe.evidence))),
        section("Made with", mapping(_made_with(information))),
        section("Do it again", _commands(run_dir, information, status)),
    ]
    path = run_dir / "report.html"
    write_atomic(path, page(name, sections))
    return path


def _draw(
    run_dir: Path, recipe: Recipe, derived: Mapping[str, Any], rows: list[dict[str, Any]], evaluation: Mapping[str, Any]
) -> None:
    """The pictures beside the page, for pasting elsewhere."""
    from resnet.tools.report.plots import draw_confusion, draw_curves

    if rows:
        top5 = len(evaluation.get("classes") or ()) > 5
        draw_curves(rows, run_dir / "curves.png", learning_rates(recipe, derived, rows), top5)
    if evaluation.get("confusion"):
        draw_confusion(evaluation["confusion"], evaluation["classes"], run_dir / "confusion.png")


def _mistakes(pictures: Pictures, expected: bool) -> str:
    """expected: whether the evaluation has any."""
    if not pictures.mistakes:
        return _problem(pictures) if expected else ""
    what = "<p class='soft'>True class → predicted class, and the probability given to it.</p>"
    return what + tiles((picture.jpeg, picture.caption, picture.file) for picture in pictures.mistakes)


def _training_images(pictures: Pictures) -> str:
    if not pictures.training:
        return _problem(pictures)
    what = "The first images of step 1, cropped, augmented and mixed. <code>resnet look</code> shows those of any step."
    shown = tiles((picture.jpeg, picture.caption, picture.file) for picture in pictures.training)
    return f"<p class='soft'>{what}</p>{shown}"


def _problem(pictures: Pictures) -> str:
    return f"<p class='soft'>{escape(pictures.problem)}</p>" if pictures.problem else ""


def _headline(name: str, recipe: Recipe, status: Mapping[str, Any]) -> str:
    state = str(status.get("state") or "unknown")
    known = state if state in ("finished", "failed", "running") else ""
    updated = status.get("updated")
    lines = [f'<h1>{escape(name)} <span class="state {known}">{escape(state)}</span></h1>']
    parts = [f"recipe {recipe.name}", recipe.description, f"as of {moment(updated)}" if updated else ""]
    if state == "running" and updated and (silent := time.time() - updated) > _SILENT:
        parts.append(f"nothing heard of it for {format_duration(silent)}")
    lines.append(f"<p class='soft'>{escape(' · '.join(part for part in parts if part))}</p>")
    if state in ("failed", "stopped") and (reason := status.get("reason")):
        lines.append(f"<p class='bad'>{escape(str(reason))}</p>")
    if early := status.get("stopped_early"):
        lines.append(f"<p>{escape(str(early))}</p>")
    url = str(status.get("wandb_url") or "")
    if url.startswith(("https://", "http://")):
        lines.append(f'<p><a href="{escape(url)}">{escape(url)}</a></p>')
    return "".join(lines)


def _best(rows: list[dict[str, Any]], metric: str) -> dict[str, Any] | None:
    """The row of the best evaluation, of equal ones the first."""
    measured = [row for row in rows if row.get(f"val/{metric}") is not None]
    return min(measured, key=lambda row: cost(row[f"val/{metric}"], METRICS[metric].goal), default=None)


def _facts(
    recipe: Recipe,
    status: Mapping[str, Any],
    information: Mapping[str, Any],
    rows: list[dict[str, Any]],
    evaluation: Mapping[str, Any],
) -> str:
    found: list[tuple[str, str, str]] = []
    best = _best(rows, recipe.eval.metric)
    if best is not None and best.get("val/top1") is not None:
        mark = {True: "good", False: "bad", None: ""}
        judged = _judged(recipe, rows, best, information)
        what = f"best top-1 (epoch {best['epoch']:.4g})"
        if best.get("val/top5") is not None and len(evaluation.get("classes") or ()) > 5:
            what += f", top-5 {best['val/top5']:.2f}%"
        if best.get("val/samples"):
            what += f", of {best['val/samples']:,} images"
        found.append((f"{best['val/top1']:.2f}%", f"{what}; {judged.text}", mark[judged.good]))
    if status.get("test_top1") is not None:
        tested = next((row for row in reversed(rows) if "test/samples" in row), {})
        of = f", of {tested['test/samples']:,} images" if tested else ""
        found.append((f"{status['test_top1']:.2f}%", f"test top-1 of the final weights{of}", ""))
    if status.get("step") is not None:
        epoch, epochs = status.get("epoch"), status.get("epochs")
        where = f"; epoch {epoch:g} of {epochs:g}" if epoch is not None and epochs is not None else ""
        found.append((f"{status['step']:,}", f"steps of {status.get('total_steps') or 0:,}{where}", ""))
    attempts = information.get("attempts") or []
    if seconds := sum(
        (attempt.get("end") or status.get("updated") or attempt["start"]) - attempt["start"] for attempt in attempts
    ):
        found.append(
            (format_duration(seconds), "time" if len(attempts) == 1 else f"time, {len(attempts)} attempts", "")
        )
    if speeds := _values(rows, "images_per_second"):
        devices = max(1, int(information.get("world_size") or 1))
        what = "images/s (median)" + (f"; {median(speeds) / devices:,.0f} on each of {devices}" if devices > 1 else "")
        waits = _values(rows, "data_wait")
        what += f"; {100 * median(waits):.0f}% of the time waiting for data" if waits else ""
        found.append((f"{median(speeds):,.0f}", what, ""))
    if slow := [row for row in rows if SLOW_RANKS in row]:
        rank, lines = Counter(row["slowest_rank"] for row in slow).most_common(1)[0]
        last = next(row for row in reversed(slow) if row["slowest_rank"] == rank)
        what = f"named slow in {lines} of {len(_values(rows, 'slowest_ratio'))} lines of the log; {last[SLOW_RANKS]}"
        found.append((f"rank {rank}", what, "bad" if 2 * lines > len(_values(rows, "slowest_ratio")) else ""))
    if memory := _values(rows, "memory_gb"):
        found.append((f"{max(memory):.1f} GB", "most memory of a device", ""))
    return facts(found)


def _judged(
    recipe: Recipe, rows: list[dict[str, Any]], best: Mapping[str, Any], information: Mapping[str, Any]
) -> Judgement:
    """What the recipe's evidence says of the run: of its best evaluation or of its last."""
    last = recipe.evidence is not None and recipe.evidence.weights == "last"
    row = next(row for row in reversed(rows) if row.get("val/top1") is not None) if last else best
    return judge(recipe, row["val/top1"], (information.get("plan") or {}).get("training_images"))


def _values(rows: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    return [row[key] for row in rows if row.get(key) is not None]


def differing(group: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, value and default (None: there is none) of each setting that is not at its default."""
    for name, field in type(group).model_fields.items():
        value, default = getattr(group, name), field.get_default(call_default_factory=True)
        if not prefix and name in NOT_TRAINING:
            continue
        if not isinstance(value, BaseModel):
            if field.is_required() or value != default:
                yield f"{prefix}{name}", value, None if field.is_required() else default
            continue
        if _is_optional(field):
            yield f"{prefix}{name}", "on", "off"
        yield from differing(value, f"{prefix}{name}.")


def _is_optional(field: FieldInfo) -> bool:
    return not field.is_required() and field.get_default(call_default_factory=True) is None


def _settings(recipe: Recipe) -> str:
    rows = [
        [f"<code>{escape(key)}</code>", escape(show(value)), f"<span class='soft'>{escape(_default(default))}</span>"]
        for key, value, default in differing(recipe)
    ]
    return table(["setting", "value", "default"], rows, style="settings")


def _default(value: Any) -> str:
    return "" if value is None else show(value)


def _evidence(evidence: Evidence | None) -> dict[str, Any]:
    if evidence is None:
        return {}
    values = evidence.model_dump()
    values["top1"] = None if evidence.top1 is None else f"{evidence.top1:g}%"
    values["measured"] = told(evidence.measured)
    values["band"] = None if evidence.band is None else f"{evidence.band[0]:g} to {evidence.band[1]:g}%"
    return {key.replace("top1", "expected top-1"): value for key, value in values.items()}


def _attempts(attempts: list[dict[str, Any]]) -> str:
    rows = []
    for number, attempt in enumerate(attempts, 1):
        end = attempt.get("end")
        code = (attempt.get("git_sha") or "")[:10] + (" + changes" if attempt.get("git_changed") else "")
        cells = (
            str(number),
            moment(attempt["start"]),
            format_duration(end - attempt["start"]) if end else "",
            f"{attempt['first_step']:,} to {attempt['step']:,}" if end else f"{attempt['first_step']:,} on",
            attempt.get("reason") or "",
            " ".join(filter(None, [attempt.get("host"), attempt.get("job_id") and f"job {attempt['job_id']}"])),
            counted(attempt.get("devices") or []),
            code,
        )
        rows.append([escape(cell) for cell in cells])
    return table(
        ["", "start", "time", "steps", "end", "host", "devices", "commit"], rows, numbers=(2,), style="attempts"
    )


def _made_with(information: Mapping[str, Any]) -> dict[str, Any]:
    git = information.get("git") or {}
    commit = git.get("sha", "")
    if git.get("changed"):
        commit += f", and {len(git['diff'].splitlines())} lines of uncommitted changes (in provenance.json)"
    return {
        "command": information.get("command"),
        "folder": information.get("folder"),
        "commit": commit,
        "devices": counted(information.get("devices") or []),
        "host": information.get("host"),
        "platform": information.get("platform"),
        "version": information.get("version"),
        "python": information.get("python"),
        "packages": ", ".join(f"{name} {version}" for name, version in (information.get("packages") or {}).items()),
    }


def _commands(run_dir: Path, information: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    run = str(run_dir) if "/" in str(run_dir) else f"./{run_dir}"
    recipe = shlex.quote(f"recipe={run}/recipe.yaml")
    place = [f"run.root={run_dir.resolve().parent}", f"run.name={run_dir.resolve().name}"]
    here = " ".join(shlex.quote(argument) for argument in place)
    again = shlex.quote(f"run.name={run_dir.resolve().name}-again")
    ranks = int(information.get("world_size") or 1)
    start = accelerate_command(ranks)
    commands = [("the same training once more", f"{start} train.py {recipe} {again}")]
    if status.get("state") != "finished":
        commands.insert(0, ("go on with this run", f"{start} train.py {recipe} {here}"))
    quoted = shlex.quote(run)
    if newest_step(run_dir) or status.get("state") == "finished":
        commands.append(("evaluate its weights", f"resnet eval {quoted}"))
        commands.append(("classify a folder of images", f"resnet predict {quoted} FOLDER --csv predictions.csv"))
    sha = (information.get("git") or {}).get("sha")
    if sha:
        commands.insert(0, ("get the same code", f"git checkout {sha}"))
    return "".join(f"<p class='soft'>{escape(what)}</p><pre>{escape(command)}</pre>" for what, command in commands)
