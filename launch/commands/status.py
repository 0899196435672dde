"""`launch status`: how runs go, as a table, one run in full, or JSON."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from launch.arguments import add_root
from launch.runs.chain import goes_on
from launch.runs.chain import lines as chain_lines
from launch.runs.chain import note as chain_note
from launch.runs.job_record import job_file, read_job
from launch.runs.logs import attempts, first_failure, log_file, log_files, tail
from launch.runs.state import by_key, find, folders, matches, ordered, rows
from launch.watch import View, watch
from recipes.text import format_duration, table
from resnet.rundir.attempts import read_attempts
from resnet.rundir.files import to_json
from resnet.rundir.find import ROOT, find_sweep, roots, sweeps_in
from resnet.rundir.metrics_log import SLOW_RANKS
from resnet.rundir.stages import described, read_stages
from resnet.rundir.status import status_or_nothing

MOST_OF_A_STATE = 20
NAME_LEAST, RECIPE_LEAST, NOTE_LEAST, NOTE_MOST, TAIL_LINES = 20, 16, 20, 160, 10
DROPPED_FIRST = ("tries", "img/s", "loss", "saved", "recipe", "ETA", "epoch", "best", "%")
"""What is left out on a narrow terminal, in this order."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="a run's name or directory; a single one is shown in full; or cluster=NAME",
    )
    add_root(parser)
    parser.add_argument("--sort", metavar="KEY", help="order by a key of --json, as best or updated: largest first")
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    parser.add_argument(
        "--filter",
        metavar="TEXT",
        action="append",
        default=[],
        help="only runs with KEY=VALUE, as state=failed or optimizer.lr=0.4, or with the text in name or recipe",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help=f"all runs; a terminal is shown {MOST_OF_A_STATE} of each state, unless --filter or --sort is given",
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--watch", action="store_true", help="redraw until all runs are over, or Ctrl-C")
    shape.add_argument("--json", action="store_true", help="print a list of objects; of a sweep, one object")
    shape.add_argument("--csv", action="store_true", help="of a sweep: print a row a trial")
    shape.add_argument("--plot", action="store_true", help="of a sweep: draw the metric against each parameter")


def run(arguments: argparse.Namespace) -> None:
    sweep_dir = find_sweep(arguments.runs[0], arguments.root) if len(arguments.runs) == 1 else None
    if sweep_dir is None and (arguments.csv or arguments.plot):
        raise ValueError(f"{'--csv' if arguments.csv else '--plot'} applies to one sweep: launch status SWEEP")
    if arguments.watch:
        watch(partial(_sweep_view, sweep_dir) if sweep_dir else partial(_view, arguments))
    elif sweep_dir:
        from launch.sweep.show import show

        print(show(sweep_dir, arguments, _width()))
    else:
        found = _found(arguments)
        # Of many runs no more files are read.
        shown = _with_costs(found) if arguments.json and _named(arguments)[0] else found
        print(to_json(shown, indent=1) if arguments.json else "\n".join(_lines(found, arguments)))


def _view(arguments: argparse.Namespace) -> View:
    found = _found(arguments)
    asked = any((row["job_id"] and not row["over"]) or goes_on(row["chain"]) for row in found)
    over = all(row["over"] and not goes_on(row["chain"]) for row in found)
    return View(_lines(found, arguments), over, asked)


def _sweep_view(sweep_dir: Path) -> View:
    from launch.sweep.show import look

    return View(*look(sweep_dir, _width()))


def _width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _found(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    names, clusters = _named(arguments)
    found = rows([find(name, arguments.root) for name in names] or folders(arguments.root, clusters))
    for cluster in clusters:
        found = [row for row in found if cluster in {row["cluster"], *(place["cluster"] for place in row["places"])}]
    for wanted in arguments.filter:
        found = [row for row in found if matches(row, wanted)]
    chosen = by_key(found, arguments.sort) if arguments.sort else ordered(found)
    return chosen[::-1] if arguments.reverse else chosen


def _named(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The runs that are named, and the clusters."""
    clusters = [word.partition("=")[2] for word in arguments.runs if word.startswith("cluster=")]
    return [word for word in arguments.runs if not word.startswith("cluster=")], clusters


def _lines(found: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> list[str]:
    if len(_named(arguments)[0]) == 1 and found:
        return describe(found[0])
    places = [] if arguments.runs or arguments.filter else roots(arguments.root)
    sweeps = [sweep for place in places if place.is_dir() for sweep in sweeps_in(place)]
    told = [f"sweep {path.name}: launch status {shlex.quote(path.name)}" for path in sweeps]
    shown = found if arguments.all or arguments.filter or arguments.sort else _first(found)
    lines = [*run_table(shown, _width()), *_left_out(found, shown)] if found else []
    return [*lines, *told] or [f"no runs in {arguments.root}"]


def _first(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """On a terminal so many of each state, so that what needs a look stays in sight."""
    if not sys.stdout.isatty():
        return [*found]
    number: Counter[str] = Counter()
    shown = []
    for row in found:
        number[row["state"]] += 1
        shown += [row] if number[row["state"]] <= MOST_OF_A_STATE else []
    return shown


def _left_out(found: Sequence[dict[str, Any]], shown: Sequence[dict[str, Any]]) -> list[str]:
    more = Counter(row["state"] for row in found)
    more.subtract(row["state"] for row in shown)
    states = ", ".join(f"{number:,} {state}" for state, number in more.items() if number)
    return [f"... and {states} more: --all, or --filter state=STATE"] if states else []


def run_table(found: Sequence[dict[str, Any]], width: int | None = None) -> list[str]:
    """A line for each run under a line of headings. width: columns of the terminal, to be kept within."""
    columns = {
        heading: [cell(row) for row in found]
        for heading, cell in CELLS.items()
        if heading != "tries" or any((row["attempts"] or 0) > 1 for row in found)
    }
    columns = {heading: cells for heading, cells in columns.items() if any(cells)}
    least = {"name": NAME_LEAST, "recipe": RECIPE_LEAST, "": NOTE_LEAST}
    return table(columns, width, DROPPED_FIRST, least, left=("name", "state", "recipe", ""))


def _state(row: dict[str, Any]) -> str:
    slurm = row["slurm_state"]
    usual = row["over"] or (row["state"], slurm) in (("running", "RUNNING"), ("queued", "PENDING"))
    return row["state"] if usual or not slurm else f"{row['state']} ({slurm.lower()})"


def _note(row: dict[str, Any]) -> str:
    reason = (row["reason"] or "").partition("\n")[0]
    reason = reason if len(reason) <= NOTE_MOST else f"{reason[: NOTE_MOST - 2]}.."
    return f"{row['failure']}: {reason}" if row["failure"] else reason


def _notes(row: dict[str, Any]) -> str:
    return "; ".join(filter(None, (_note(row), chain_note(row["chain"]))))


def _epoch(row: dict[str, Any]) -> str:
    if row["epoch"] is None:
        return ""
    return f"{row['epoch']:.4g}/{row['epochs']:g}" if row["epochs"] else f"{row['epoch']:.4g}"


def _figure(key: str, form: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: "" if row[key] is None else format(row[key], form)


def _time(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: "" if row[key] is None else format_duration(row[key])


def _speed(row: dict[str, Any]) -> str:
    shown = row["state"] in ("running", "finished") and row["images_per_second"] is not None
    return f"{row['images_per_second']:.0f}" if shown else ""


CELLS: dict[str, Callable[[dict[str, Any]], str]] = {
    "name": lambda row: row["name"],
    "state": _state,
    "recipe": lambda row: row["recipe"] or "",
    "epoch": _epoch,
    "%": _figure("percent", ".0f"),
    "loss": _figure("loss", ".4g"),
    "best": _figure("best", ".4g"),
    "img/s": _speed,
    "ETA": _time("eta_s"),
    "saved": _time("last_checkpoint_age_s"),
    "tries": _figure("attempts", ".0f"),
    "": _notes,
}
"""By heading: `recipe` with what differs from it, `best` by the recipe's metric, `saved` the age of the last
checkpoint; the last one is a reason."""


def describe(row: dict[str, Any]) -> list[str]:
    """All that is known of a run, and what can be done with it, a line each."""
    run_dir = Path(row["run_dir"])
    shown = {
        "": _note(row),
        "recipe": row["recipe"],
        "progress": _progress(row),
        "metrics": _join(
            _labelled("loss", _figure("loss", ".4g")(row)),
            _labelled("last top-1", _figure("top1", ".2f")(row), "%"),
            _labelled("best", _figure("best", ".4g")(row)),
            _labelled("test top-1", _figure("test_top1", ".2f")(row), "%"),
            _labelled("", _speed(row), " img/s"),
        ),
        "checkpoint": _join(_checkpoint(run_dir), _labelled("", _time("last_checkpoint_age_s")(row), " ago")),
        "attempts": _attempts(row),
        **_costs(row),
        "slow": _slow(row["state"], run_dir),
        "start": described(read_stages(run_dir, int(row["attempts"] or 0)).get("seconds", {})),
        "nodes": _nodes(run_dir),
        "job": _job(row),
        "directory": str(run_dir),
        "W&B": row["wandb_url"],
    }
    lines = [f"{row['name']}: {_state(row)}"]
    lines += [f"  {label:10}  {text}" for label, text in shown.items() if text]
    lines += chain_lines(row["chain"]) if row["chain"] else []
    return [*lines, *_log(row), *(f"  {label:10}  {command}" for label, command in _commands(row).items())]


def _join(*parts: str | None) -> str:
    return ", ".join(filter(None, parts))


def _labelled(label: str, text: str, unit: str = "") -> str:
    return f"{label} {text}{unit}".strip() if text else ""


def _progress(row: dict[str, Any]) -> str:
    step = _figure("step", ".0f")(row)
    of = f"/{row['total_steps']:.0f}" if row["total_steps"] else ""
    percent = f" ({row['percent']:.0f}%)" if row["percent"] is not None else ""
    return _join(
        _labelled("epoch", _epoch(row)),
        _labelled("step", step, of + percent),
        _labelled("ETA", _time("eta_s")(row)),
        _labelled("updated", format_duration(time.time() - row["updated"]), " ago") if row["updated"] else "",
    )


def _checkpoint(run_dir: Path) -> str:
    with contextlib.suppress(OSError):
        return (run_dir / "checkpoints" / "latest").read_text(encoding="utf-8", errors="replace").strip()
    return ""


def _attempts(row: dict[str, Any]) -> str:
    count = _figure("attempts", ".0f")(row)
    ended = [attempt for attempt in read_attempts(Path(row["run_dir"])) if attempt.get("outcome")]
    if not ended:
        return count
    last = ended[-1]
    cause = f" ({last['cause']})" if last.get("cause") else ""
    return _join(count, f"number {last['attempt']} {last['outcome']}{cause} at step {last.get('last_step')}")


def _costs(row: dict[str, Any]) -> dict[str, str]:
    """Where the time went, and what it cost."""
    from launch.runs.so_far import lines, so_far

    found = so_far(row)
    return lines(found) if found else {}


def _with_costs(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    from launch.runs.read_once import read_once
    from launch.runs.so_far import as_json, so_far

    with read_once():
        return [row | as_json(so_far(row)) for row in found]


def _slow(state: str, run_dir: Path) -> str:
    """Of a run that goes on, the ranks that the others wait for."""
    slow = status_or_nothing(run_dir).get(SLOW_RANKS) if state == "running" else None
    return str(slow or "")


def _nodes(run_dir: Path) -> str:
    """What start checks found: bad nodes, and what the newest has to say beside."""
    checks = [attempt["check"] for attempt in read_attempts(run_dir) if isinstance(attempt.get("check"), dict)]
    if not checks:
        return ""
    bad = {node: why for check in checks for node, why in (check.get("bad") or {}).items()}
    without = [f"without {node}: {why}" for node, why in bad.items()]
    return "; ".join([*without, *(checks[-1].get("notes") or [])]) or "start check: all well"


def _job(row: dict[str, Any]) -> str:
    if not row["job_id"]:
        return ""
    left = _labelled("time left", _time("time_left_s")(row))
    state = f"{row['job_id']} {(row['slurm_state'] or '').lower()}".strip()
    return _join(f"{state} on {row['nodes']}" if row["nodes"] else state, left)


def _log(row: dict[str, Any]) -> list[str]:
    """The path of the log, of the rank that failed first where one did, then with its last lines."""
    run_dir = Path(row["run_dir"])
    first = first_failure(run_dir) if row["state"] == "failed" else None
    rank = first[0] if first else 0
    file = log_file(run_dir, rank) or next(iter(log_files(run_dir).values()), None)
    if file is None:
        return []
    lines = [f"  {'log':10}  {file}"]
    if row["state"] == "failed":
        lines += [f"    {line}" for line in tail(file, TAIL_LINES)]
    return lines


def _retry_words(run_dir: Path) -> tuple[str, ...]:
    with contextlib.suppress(ValueError, OSError):
        if job := read_job(run_dir):
            return job.retry_words
    return ()


def _commands(row: dict[str, Any]) -> dict[str, str]:
    """What to type next."""
    run_dir = Path(row["run_dir"])
    name = shlex.quote(row["name"] if run_dir.parent == Path(ROOT) else str(run_dir))
    commands = {}
    if not row["over"]:
        if job_file(run_dir).exists() or attempts(run_dir):
            commands["follow"] = f"launch logs {name} -f"
        commands["cancel"] = f"launch cancel {name}"
    elif goes_on(row["chain"]):
        commands["cancel"] = f"launch cancel {name}"
    elif row["state"] in ("failed", "stopped"):
        commands["continue"] = " ".join(["launch retry", name, *_retry_words(run_dir)])
    return commands
