"""board.html: all runs and sweeps of a folder on one page, to be filtered, sorted and compared."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from recipes.metric import METRICS, best_of
from recipes.text import cut, plural
from resnet.rundir.find import ROOT, SWEEP_FILE, runs_in
from resnet.rundir.metrics_log import Point, read_points
from resnet.rundir.state import STATES, own_rows
from resnet.rundir.sweep.result_types import figure
from resnet.rundir.sweep.results import Board, folders, results, sweep_so_far
from resnet.tools.board.pages import REASON_MOST, digits, linked, report_link, strided, write_page
from resnet.tools.report.html import moment, section, table

SPARK_POINTS = 30
CURVES = {"val/top1": "top-1 %", "train/loss": "training loss"}
"""What a sparkline shows: the first that the run has."""


class Swept(NamedTuple):
    """A sweep, as far as it can be read."""

    folder: Path
    found: Board | None
    rows: list[dict[str, Any]]
    """Of its trials, as of `own_rows`."""
    problem: str


def write_board(root: Path, path: Path | None = None) -> Path:
    """Write a page of all runs and sweeps in a folder, and return its path.

    path: of the page; None: board.html in the folder. Reports are linked where they are, not written.
    A run that cannot be read is listed as damaged. Raises ValueError where the folder is not there, or the page cannot
    be written.
    """
    path = path or root / "board.html"
    try:
        run_dirs = sorted(runs_in(root))
    except OSError as error:
        raise ValueError(f"no runs in {root}: {error.strerror}") from error
    sweeps = [_swept(file.parent) for file in sorted(root.glob(f"*/{SWEEP_FILE}"))]
    runs = [_run(row, root, path, None) for row in own_rows(run_dirs)]
    for sweep in sweeps:
        runs += [_run(row, root, path, sweep.folder.name) for row in sweep.rows]
    told = f"{plural(len(run_dirs), 'run')}, {plural(len(sweeps), 'sweep')} · as of {moment(time.time())}"
    sections = [
        f"<h1>{escape(str(root))}</h1><p class='soft'>{escape(told)}</p>",
        section("Sweeps", _sweeps(sweeps, path)),
        section("Runs", _FRAME) if runs else "<section><p>No runs here yet.</p></section>",
    ]
    data = {"runs": runs, "states": [*STATES, "pruned"]}
    return write_page(path, f"Runs in {root}", sections, data, *(["board.js"] if runs else []))


_FRAME = """
<div class="picks tools"><input id="filter" type="search" aria-label="filter" autocomplete="off" spellcheck="false"
  placeholder="filter: words, state=failed, optimizer.lr&gt;0.1, top1&gt;70"><span id="states" class="picks"></span>
  <span id="count" class="soft"></span></div>
<div id="chosen" hidden><figure class="several" id="overlay"></figure><pre id="command"></pre></div>
<div class="scroll"><table class="runs" id="runs"></table></div>
"""


def _run(row: Mapping[str, Any], root: Path, page_file: Path, sweep: str | None) -> dict[str, Any]:
    """A run as board.js takes it."""
    run_dir = Path(row["run_dir"])
    title, points, problem = _curve(run_dir)
    top1 = best_of((point.value for point in points), "maximize") if title == CURVES["val/top1"] else None
    kept = [points[index] for index in strided(len(points), SPARK_POINTS)]
    axes = {"x": [point.epoch for point in kept], "y": [point.value for point in kept]}
    reason = row["reason"] or problem
    return {
        "name": f"{sweep}/{row['name']}" if sweep else row["name"],
        "report": report_link(run_dir, page_file),
        "word": _word(run_dir, root),
        "sweep": sweep,
        "state": row["state"],
        "why": cut(f"{row['failure']}: {reason}" if row["failure"] else reason or "", REASON_MOST),
        "recipe": row["recipe"] or "",
        "differs": row["differs"] or {},
        "top1": digits(top1),
        "epoch": digits(row["epoch"]),
        "epochs": row["epochs"],
        "speed": digits(row["images_per_second"], 4),
        "updated": row["updated"] and round(row["updated"]),
        "curve": {"title": title, **{axis: [digits(value, 4) for value in values] for axis, values in axes.items()}},
    }


def _word(run_dir: Path, root: Path) -> str:
    """How a run is named on a command line."""
    return shlex.quote(run_dir.name if root == Path(ROOT) and run_dir.parent == root else str(run_dir))


def _curve(run_dir: Path) -> tuple[str, list[Point], str]:
    """What a run's sparkline shows, its points, and what is wrong with the file."""
    problem = ""
    for key, title in CURVES.items():
        try:
            points, damaged = read_points(run_dir / "metrics.jsonl", key)
        except FileNotFoundError:
            break
        except OSError as error:
            return "", [], f"metrics.jsonl: {error.strerror}"
        problem = problem or (f"metrics.jsonl: {plural(damaged, 'damaged line')}" if damaged else "")
        if points:
            return title, points, problem
    return "", [], problem


def _swept(sweep_dir: Path) -> Swept:
    try:
        sweep = sweep_so_far(sweep_dir)
        rows = own_rows(folders(sweep))
        found = results(sweep, rows)
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        return Swept(sweep_dir, None, [], f"{error or type(error).__name__}")
    states = {trial.name: trial.state for trial in found.trials}
    return Swept(sweep_dir, found, [row | {"state": states[row["name"]]} for row in rows], "")


def _sweeps(sweeps: list[Swept], page_file: Path) -> str:
    rows = []
    for sweep in sweeps:
        name = linked(sweep.folder.name, report_link(sweep.folder, page_file))
        if sweep.found is None:
            rows.append([name, f"<span class='bad'>{escape(cut(sweep.problem, REASON_MOST))}</span>", "", "", ""])
            continue
        found, best = sweep.found, sweep.found.best
        states = ", ".join(f"{number} {state}" for state, number in found.counts.items())
        metric = METRICS[found.metric]
        value = f"{figure(best.value, found.metric)}{metric.unit} {metric.title}" if best else ""
        over = f"{found.method} over {', '.join(found.keys)}" if found.keys else found.method
        rows.append([name, escape(over), escape(states), escape(value), escape(best.label if best else "")])
    return table(["sweep", "method", "trials", "best", "of"], rows)
