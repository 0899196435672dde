"""What a sweep has found as text: for a terminal, as JSON and CSV, and its winner's recipe."""

from __future__ import annotations

import contextlib
import csv
import io
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipes.metric import METRICS
from recipes.text import format_duration, labels, plural, table
from resnet.rundir.files import write_atomic
from resnet.rundir.find import ROOT
from resnet.rundir.sweep.result_types import REPEATED, Setting, figure, goes_on, repeated, shortened
from resnet.rundir.sweep.results import Board, sweep_so_far

LAST = "done"
"""The last column of the table."""
DROPPED_FIRST = ("GPU-h", "time", "range", "epoch")
"""What is left out on a narrow terminal, in this order."""


def lines(board: Board, width: int | None = None, top: int = 10) -> list[str]:
    """A sweep for a terminal. width: columns that the table is to keep within. top: settings that are listed."""
    metric, wins = METRICS[board.metric].title, "highest" if board.goal == "maximize" else "lowest"
    over = f" over {', '.join(board.keys)}" if board.keys else ""
    facts = [
        f"{plural(len(board.trials), 'trial')}: {_counted(board.counts)}",
        f"{board.gpu_hours:.3g} GPU-hours" if board.gpu_hours else "",
        format_duration(board.elapsed_s),
        f"about {format_duration(board.eta_s)} left" if board.eta_s is not None else "",
    ]
    told = [f"{board.name}: {board.method}{over}; the {wins} {metric} wins", f"  {'; '.join(filter(None, facts))}"]
    told += [f"  {board.wandb_url}", ""] if board.wandb_url else [""]
    ranked = [setting for setting in board.settings if setting.value is not None]
    told += (
        table(_columns(board, ranked[:top]), width, DROPPED_FIRST, left=(LAST,))
        if ranked
        else ["no trial has been evaluated yet"]
    )
    if len(ranked) > top:
        told.append(f"... and {plural(len(ranked) - top, 'more setting')}")
    comparison = [board.comparison.text] if board.comparison else []
    return [*told, "", *comparison, *_importance_lines(board), *_failures(board), *_best_lines(board)]


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {what}" for what, number in counts.items())


def _columns(board: Board, settings: Sequence[Setting]) -> dict[str, list[str]]:
    metric, several = board.metric, repeated(board.keys) is not None
    cells: dict[str, Callable[[Setting], str]] = {
        METRICS[metric].label: lambda one: figure(one.value, metric),
        "± sd": lambda one: figure(one.spread, metric),
        "range": lambda one: f"{figure(one.low, metric)}-{figure(one.high, metric)}" if several else "",
        "epoch": lambda one: "" if one.best_epoch is None else f"{one.best_epoch:.3g}",
        "time": lambda one: format_duration(one.seconds) if one.seconds else "",
        "GPU-h": lambda one: f"{one.gpu_hours:.3g}" if one.gpu_hours else "",
        LAST: lambda one: _done(one, several),
    }
    columns = {"#": [str(number) for number in range(1, len(settings) + 1)]}
    for key, label in labels(key for key in board.keys if key not in REPEATED).items():
        columns[label] = [shortened(setting.point.get(key, "")) for setting in settings]
    columns |= {header: [cell(setting) for setting in settings] for header, cell in cells.items()}
    return {header: shown for header, shown in columns.items() if any(shown)}


def _done(setting: Setting, several: bool) -> str:
    others = {state: number for state, number in setting.states.items() if state != "finished"}
    if not several:
        return "".join(others)
    return ", ".join(filter(None, [f"{setting.done} of {len(setting.trials)}", _counted(others)]))


def _importance_lines(board: Board) -> list[str]:
    if not board.importance:
        return []
    finished = sum(trial.counts for trial in board.trials)
    names = labels(board.keys)
    width = max(len(names[share.key]) for share in board.importance)
    told = [f"what mattered: share of the variance explained alone, over {finished} finished trials"]
    for one in board.importance:
        note = (
            f"differences between {repeated(board.keys)}s of a setting"
            if one.by_chance is None
            else f"by chance {one.by_chance:.0%}"
        )
        told.append(f"  {names[one.key]:{width}}  {one.share:4.0%}  ({note})")
    return told


def _failures(board: Board) -> list[str]:
    told = []
    if failed := [trial for trial in board.trials if trial.state in ("failed", "damaged")]:
        kinds = Counter(trial.failure or trial.state for trial in failed)
        name = board.name if Path(board.folder) == Path(ROOT) / board.name else board.folder
        reason = (failed[0].reason or "no reason is known").partition("\n")[0]
        told += [f"failed: {_counted(dict(kinds.most_common()))}; again with {shlex.join(['launch', 'retry', name])}"]
        told += [f"  {failed[0].name}: {reason}"]
    if harmed := [trial for trial in board.trials if trial.problem]:
        more = f", and {len(harmed) - 1} more of the kind" if len(harmed) > 1 else ""
        told += [f"{harmed[0].name}: {harmed[0].problem}{more}"]
    return told


def _best_lines(board: Board) -> list[str]:
    if board.best is None:
        return ["no trial has finished yet"] if any(trial.value is not None for trial in board.trials) else []
    so_far = " so far" if goes_on(board.trials) else ""
    told = [f"best{so_far}: {board.best.label}, {_value_told(board)}"]
    file = best_file(board.folder)
    return [*told, f"  {shlex.join(['launch', 'show', f'recipe={file}'])}"] if file.is_file() else told


def _value_told(board: Board) -> str:
    best, (metric, unit, _) = board.best, METRICS[board.metric]
    assert best is not None
    value = f"{metric} {figure(best.value, board.metric)}{unit and ' ' + unit}"
    if best.done == 1:
        return f"{value} (one trial)"
    return (
        f"{value} (mean of {best.done} {repeated(board.keys)}s, standard deviation {figure(best.spread, board.metric)})"
    )


def to_object(board: Board) -> dict[str, Any]:
    """For `--json`."""
    best, file = board.best, best_file(board.folder)
    return {
        **{key: getattr(board, key) for key in ("name", "method", "metric", "goal", "counts", "wandb_url")},
        **{key: getattr(board, key) for key in ("gpu_hours", "elapsed_s", "eta_s")},
        "leaderboard": [asdict(setting) for setting in board.settings],
        "trials": [asdict(trial) for trial in board.trials],
        "importance": [asdict(share) for share in board.importance],
        "comparison": asdict(board.comparison) if board.comparison else None,
        "best": asdict(best) | {"recipe": str(file) if file.is_file() else None} if best else None,
    }


def to_csv(board: Board) -> str:
    """A row a trial, for `--csv`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "state", *board.keys, f"val/{board.metric}", "best_epoch", "seconds", "gpu_hours"])
    for trial in board.trials:
        point = [trial.point.get(key) for key in board.keys]
        used = [round(trial.seconds, 1), round(trial.gpu_hours, 4)]
        writer.writerow([trial.name, trial.state, *point, trial.value, trial.best_epoch, *used])
    return text.getvalue()


def best_file(sweep_dir: Path | str) -> Path:
    return Path(sweep_dir) / "best.yaml"


def write_best(sweep_dir: Path, board: Board) -> Path | None:
    """Keep the recipe of the best setting's best trial as best.yaml, ready to run; returns the file.

    None before a trial has finished, and where the folder cannot be written.
    Raises ValueError where the recipe cannot be read.
    """
    if board.best is None:
        return None
    trial = next(trial for trial in board.trials if trial.name == board.best.best_trial)
    # What was trained: the files that the words name may have changed since.
    own = sweep_dir / trial.name / "recipe.yaml"
    about = [f"Best of the sweep {board.name}: {board.best.label}", f"{_value_told(board)}; this is {trial.name}"]
    head = "".join(f"# {' '.join(line.split())}\n" for line in about)
    if _is_of(best_file(sweep_dir), head, own):
        return best_file(sweep_dir)
    # Takes longer than all else that `launch status SWEEP` does.
    from recipes.load import dump, load, load_file
    from recipes.schema.training import Run

    if own.is_file():
        recipe = load_file(own).recipe
    else:
        sweep = sweep_so_far(sweep_dir)
        words = next(listed["words"] for listed in sweep["trials"] if listed["name"] == trial.name)
        recipe = load(words, sweep.get("origins")).recipe
    evidence = recipe.evidence
    if evidence is not None:
        swept = " ".join(f"{key}={text}" for key, text in trial.point.items() if key != "recipe")
        note = f"This is evidence of the recipe before the sweep {board.name} changed it ({swept})."
        evidence = evidence.model_copy(update={"notes": f"{note} {evidence.notes}".strip()})
    wandb = recipe.wandb.model_copy(update={"group": None, "sweep": None, "tags": []})
    recipe = recipe.model_copy(update={"run": Run(), "wandb": wandb, "evidence": evidence})
    if recipe.data.fold:
        head += f"# It trains without fold {recipe.data.fold}: to train on all images set data.fold=null and give\n"
        head += "# a validation set\n"
    text = head + dump(recipe)
    file = best_file(sweep_dir)
    with contextlib.suppress(OSError):
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            write_atomic(file, text)
    return file if file.is_file() else None


def _is_of(best: Path, head: str, recipe: Path) -> bool:
    """Whether best.yaml was made of a trial's recipe as that is now."""
    try:
        newer = best.stat().st_mtime_ns > recipe.stat().st_mtime_ns
        return newer and best.read_text(encoding="utf-8").startswith(head)
    except (OSError, ValueError):
        return False
