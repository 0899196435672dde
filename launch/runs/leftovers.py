"""What of runs nobody needs any more: old copies of the code, checkpoints of finished runs, what was never finished.

Only of runs that are the user's own, and that nobody trains or has queued.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from launch.runs.asked import job_by_name
from launch.runs.chain import chain_rows, goes_on
from launch.runs.chain import read as read_chain
from launch.runs.job_record import job_file, read_job, requests_of
from launch.runs.send import SNAPSHOTS
from launch.runs.state import rows
from recipes.load import dump, load_values
from resnet.rundir.attempts import newest_step, step_of_name
from resnet.rundir.files import OLD, discard, number, read_json, to_json
from resnet.rundir.find import SWEEP_FILE, is_run, is_sweep
from resnet.rundir.lease import holder_elsewhere
from resnet.rundir.status import NAME, status_or_nothing
from resnet.rundir.sweep.sweep_file import read_sweep
from slurm.control import controller
from slurm.queue import Job, queued

YOUNG_SECONDS = 3600.0
"""Files and copies of the code that may be about to be used, or are being written, are not older."""
UNUSED_SECONDS = 30 * 86400.0
"""After which a list of images counts as unused: a folder that is not here may be on a node's own disk."""
CODE, CHECKPOINT, UNFINISHED, FAILED = "code snapshot", "checkpoint", "unfinished file", "failed run"
INDEX, ENVIRONMENT = "image list", "packed environment"
LISTS = ".index"
"""Folder beside the runs with what `resnet.data.sources.index` keeps: NAME-KEY.json and, by digest, lists."""
RECIPES = ("recipe.yaml", "slurm/recipe.yaml")
"""Of a run, and of one that was sent: before it has begun, or as it is to go on."""
Row = Mapping[str, Any]


class Leftover(NamedTuple):
    """Something to remove."""

    kind: str
    """As it is counted: one of the above."""
    path: Path
    size: int
    """Bytes."""
    updated: float | None = None
    """Unix time at which a failed run, as it is listed, last said how it is."""


def own_rows(found: Iterable[Row]) -> list[Row]:
    """Of runs, those whose folder is this user's."""
    return [row for row in found if _is_own(row["run_dir"])]


def _is_own(path: str | Path) -> bool:
    with contextlib.suppress(OSError):
        return os.stat(path).st_uid == os.geteuid()
    return False


def old_copies(place: Path, found: Sequence[Row]) -> list[Leftover]:
    """Copies of the code below a folder of runs that no run needs which is not finished: a retry runs its own copy.

    found: the rows of the folder's runs and of its sweeps' trials, whoever's they are.
    """
    copies = [copy for copy in _folder(place / SNAPSHOTS, _is_digest) if _is_old(copy) and _is_own(copy)]
    if not copies:
        return []
    unfinished = [Path(row["run_dir"]) for row in found if row["state"] != "finished"]
    if any(row["state"] == "queued" and not job_file(Path(row["run_dir"])).is_file() for row in found):
        # One that is being sent will say which it runs once it has been.
        return []
    used = {name for run in unfinished for name in _copy_of_run(run)}
    used |= {name for subject in _subjects(place, found) for name in _copies_of_chain(subject)}
    return _listed(CODE, (copy for copy in copies if copy.name not in used))


def _is_digest(name: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{16}", name) is not None


def old_environments(place: Path, found: Iterable[Row]) -> list[Leftover]:
    """Environments that were packed for jobs' nodes, where no run is under way: a retry packs its own anew."""
    packed = _folder(place / SNAPSHOTS, lambda name: name.startswith("environment-") and name.endswith(".tar"))
    chosen = [file for file in packed if _is_old(file) and _is_own(file)]
    if not chosen or any(not row["over"] or goes_on(row["chain"]) for row in found):
        return []
    return [] if any(goes_on(chain_rows(sweep)) for sweep in _subjects(place, ())) else _listed(ENVIRONMENT, chosen)


def _listed(kind: str, paths: Iterable[Path]) -> list[Leftover]:
    return [Leftover(kind, path, size_of(path)) for path in paths]


def _subjects(place: Path, found: Sequence[Row]) -> Iterator[Path]:
    """Runs and sweeps of which there is a chain."""
    folders = [*(Path(row["run_dir"]) for row in found), *_folder(place), place]
    return (folder for folder in dict.fromkeys(folders) if os.path.isdir(f"{folder}/chain"))


def _copy_of_run(run: Path) -> Iterator[str]:
    with contextlib.suppress(ValueError, OSError):
        if job := read_job(run):
            yield Path(job.snapshot).name


def _copies_of_chain(subject: Path) -> Iterator[str]:
    for step in _steps_to_come(subject):
        yield Path((step.get("job") or {}).get("snapshot") or "").name


def _steps_to_come(subject: Path) -> list[dict[str, Any]]:
    """The steps of a chain that are not finished."""
    chain = read_chain(subject)
    pairs = zip(chain.content["steps"], chain.told, strict=False) if chain else ()
    return [step for step, told in pairs if told.get("state") != "finished"]


def old_checkpoints(chosen: Iterable[Row], found: Iterable[Row], places: Iterable[Path]) -> list[Leftover]:
    """Checkpoints of finished runs, but the best, the last, and all that something to come may start from.

    chosen: runs whose checkpoints may go. found: all runs, places: the folders they lie in, for what is to come.
    """
    finished = [row for row in own_rows(chosen) if row["state"] == "finished" and not goes_on(row["chain"])]
    spare = [path for row in finished for path in spare_checkpoints(Path(row["run_dir"]))]
    named = "\n".join(_texts_to_come(found, places)) if spare else ""
    needed = {run: f"{run.name}/checkpoints" in named or f"{run.name}@" in named for run in _runs_of(spare)}
    return _listed(CHECKPOINT, (path for path in spare if not needed[path.parent.parent]))


def _runs_of(checkpoints: Iterable[Path]) -> set[Path]:
    return {path.parent.parent for path in checkpoints}


def spare_checkpoints(run_dir: Path) -> list[Path]:
    """What a run, if it is finished and nobody trains it, keeps beside its best and its last checkpoint.

    Empty where one of those two is not whole: then an older one is the next best.
    """
    status = status_or_nothing(run_dir)
    steps = {path: step for path in _folder(run_dir / "checkpoints") if (step := step_of_name(path.name)) is not None}
    if len(steps) < 2 or status.get("state") != "finished" or holder_elsewhere(run_dir):
        return []
    newest = max(steps, key=lambda path: steps[path])
    pointed = [name for pointer in ("best", "latest") if (name := _text(run_dir / "checkpoints" / pointer).strip())]
    kept = {newest, *(run_dir / "checkpoints" / name for name in pointed)}
    of_final = {path for path, step in steps.items() if step == status.get("final_step")}
    return [path for path in steps if path not in kept | of_final] if all(map(_is_whole, kept)) else []


def _is_whole(checkpoint: Path) -> bool:
    """By its files' sizes: reading them all would take hours of thousands of runs."""
    try:
        files = read_json(checkpoint / "manifest.json")["files"]
        return all((checkpoint / name).stat().st_size == facts["size"] for name, facts in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _texts_to_come(found: Iterable[Row], places: Iterable[Path]) -> Iterator[str]:
    """All that may name a checkpoint to start from: recipes of unfinished runs, trials and steps that are to come."""
    for row in found:
        if row["state"] != "finished":
            yield from (_text(Path(row["run_dir"]) / name) for name in RECIPES)
    for place in places:
        yield from _texts_of_sweep(place) if is_sweep(place) else ()
        yield from (to_json(_steps_to_come(subject)) for subject in _subjects(place, ()))


def _texts_of_sweep(sweep: Path) -> Iterator[str]:
    """What trials that have no recipe of their own yet are made of."""
    try:
        content = read_sweep(sweep)
    except (ValueError, OSError):
        yield _text(sweep / SWEEP_FILE)
        return
    if all(_has_recipe(sweep / trial["name"]) for trial in content["trials"]):
        return
    yield to_json(content)
    swept = content["parameters"].get("recipe") or {}
    for named in (content["fixed"].get("recipe"), *swept.get("values", ())):
        if isinstance(named, str) and "/" in named:
            try:
                yield dump(load_values(named).recipe)
            except (ValueError, OSError):
                yield _text(Path(named))


def _has_recipe(run: Path) -> bool:
    return any(os.path.isfile(run / name) for name in RECIPES)


def _text(file: Path) -> str:
    with contextlib.suppress(OSError):
        return file.read_text(encoding="utf-8", errors="replace")
    return ""


def unfinished_files(places: Iterable[Path], chosen: Iterable[Row]) -> list[Leftover]:
    """What was being written, or removed, when a process was killed. places: folders of runs."""
    over = (Path(row["run_dir"]) for row in own_rows(chosen) if row["over"])
    folders = [folder for place in places for folder in (place, place / SNAPSHOTS)]
    folders += [folder for run in over for folder in (run, run / "checkpoints", run / "slurm")]
    files = [file for folder in folders for file in _folder(folder, _is_temporary)]
    return _listed(UNFINISHED, (file for file in files if _is_own(file) and _is_given_up(file)))


def _is_temporary(name: str) -> bool:
    """Whether it is a name that only we give, and only to what is being written or removed: users' files stay."""
    of_process_or_chance = r"\..+(-\d+|\.[0-9a-f]{8})\.tmp"
    is_checkpoint = name.endswith(".tmp") and step_of_name(name[: -len(".tmp")]) is not None
    return is_checkpoint or _is_removed(name) or re.fullmatch(of_process_or_chance, name) is not None


def _is_removed(name: str) -> bool:
    return name.startswith(".") and name.endswith(OLD)


def _is_given_up(file: Path) -> bool:
    if _is_removed(file.name):
        # Whatever it was, a run too.
        return os.path.lexists(file) and not holder_elsewhere(_run_of(file))
    is_something = is_run(file) or is_sweep(file) or (file / NAME).exists()
    return _is_old(file) and not is_something and not holder_elsewhere(_run_of(file))


def old_lists(place: Path) -> list[Leftover]:
    """Lists of images, and what names them, whose folder is gone; if nobody has used them in a month."""
    entries = [file for file in _folder(place / LISTS) if file.suffix == ".json" and _is_own(file)]
    gone, used = [], set()
    for entry in entries:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = read_json(entry)
            listed, terms = place / LISTS / f"{content['list']}.files", content["terms"]
            at = terms.get("folder") or terms["csv"]
            if not os.path.isabs(at) or os.path.exists(at) or not _is_unused(listed):
                used.add(listed)
            else:
                gone += [entry, listed]
    return _listed(INDEX, (file for file in dict.fromkeys(gone) if file not in used and file.exists()))


def _is_unused(file: Path) -> bool:
    return _is_old(file, UNUSED_SECONDS) or not file.exists()


def _run_of(file: Path) -> Path:
    return file.parent.parent if file.parent.name in ("checkpoints", "slurm") else file.parent


def failed_runs(found: Iterable[Row]) -> list[Leftover]:
    """Runs that failed before their first checkpoint, but for trials, which their sweep's results speak of.

    Raises ValueError where one of them was sent to Slurm, which does not answer: it may be in the queue again.
    """
    chosen = [(Path(row["run_dir"]), row["updated"]) for row in _failed(found)]
    return [Leftover(FAILED, run, size_of(run), updated) for run, updated in chosen]


def _failed(found: Iterable[Row]) -> list[Row]:
    failed = [row for row in own_rows(found) if row["state"] == "failed" and row["over"] and has_nothing(row)]
    answers: dict[Any, Mapping[str, Job] | None] = {}
    waiting = {row["run_dir"] for row in failed if row["job_id"] and _may_start(row, answers)}
    return [row for row in failed if row["run_dir"] not in waiting]


def _may_start(row: Row, answers: dict[Any, Mapping[str, Job] | None]) -> bool:
    """Whether a job of a run is in the queue, or one that was to be cancelled, on whatever cluster."""
    run = Path(row["run_dir"])
    sent = [(job.job_id, job.client) for job in requests_of(run) or [read_job(run)] if job]
    for job_id, client in sent or [(row["job_id"], {})]:
        if (key := controller(client)) not in answers:
            answers[key] = queued(client)
        if (jobs := answers[key]) is None:
            raise ValueError("--failed: runs were sent to Slurm, and there is no squeue on this machine to ask of them")
        if (job := job_by_name(jobs, job_id, row["name"])) and not job.over:
            return True
    return False


def given_up(found: Sequence[Leftover]) -> list[Leftover]:
    """Without runs that, since they were listed, are failed no longer: Slurm is asked once of them all."""
    failed = [one.path for one in found if one.kind == FAILED]
    still = {row["run_dir"] for row in _failed(rows(failed))}
    return [one for one in found if one.kind != FAILED or str(one.path) in still]


def has_nothing(row: Row) -> bool:
    run = Path(row["run_dir"])
    if row["failure"] == "gone" and status_or_nothing(run).get("state") == "queued":
        # Of another cluster that shares this folder, whose queue is not seen from here.
        return False
    with_weights = newest_step(run) or (run / "final.safetensors").exists() or (run / "weights").exists()
    return not (with_weights or is_sweep(run.parent) or goes_on(row["chain"]) or holder_elsewhere(run))


def take_away(leftover: Leftover) -> bool:
    """Remove something, unless it is needed by now; returns whether it did. Raises OSError."""
    path = leftover.path
    still = {
        CODE: _is_old,
        ENVIRONMENT: _is_old,
        CHECKPOINT: lambda path: path in spare_checkpoints(path.parent.parent),
        UNFINISHED: _is_given_up,
        INDEX: lambda path: path.suffix == ".json" or _is_unused(path),
        FAILED: lambda path: _has_not_changed(path, leftover.updated) and not holder_elsewhere(path),
    }
    if not still[leftover.kind](path):
        return False
    discard(path)
    return True


def _has_not_changed(run: Path, updated: float | None) -> bool:
    return number(status_or_nothing(run).get("updated")) == updated


def _is_old(path: Path, seconds: float = YOUNG_SECONDS) -> bool:
    with contextlib.suppress(OSError):
        return time.time() - path.lstat().st_mtime > seconds
    return False


def _is_shown(name: str) -> bool:
    return not name.startswith(".")


def _folder(folder: Path, wanted: Callable[[str], bool] = _is_shown) -> list[Path]:
    """What is in a folder, by name; nothing where there is none."""
    with contextlib.suppress(OSError):
        return sorted(folder / name for name in os.listdir(folder) if wanted(name))
    return []


def size_of(path: Path) -> int:
    """Bytes of a file, or of all in a folder."""
    total = 0
    with contextlib.suppress(OSError):
        total = path.lstat().st_size
        if path.is_dir() and not path.is_symlink():
            total += sum(size_of(path / name) for name in os.listdir(path))
    return total
