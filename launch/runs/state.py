"""What is true of runs: their own word put together with Slurm's. Plain rows for `launch status` and for sweeps."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from launch.runs.asked import ask_slurm, job_by_name
from launch.runs.chain import Chain, step_rows
from launch.runs.chain import read as read_chain
from launch.runs.job_record import Job as Sent
from launch.runs.job_record import claim_of, job_file, read_job, requests_of
from launch.runs.places import Answers, answer_of, in_words, newest, place_rows, slurms_job, trouble_of
from recipes.text import format_duration, suggestion
from resnet.rundir.attempts import ENDS
from resnet.rundir.files import number, read_json
from resnet.rundir.find import ROOT, distinct, find_run, places, roots, runs_in
from resnet.rundir.index import LEAST_RUNS, Index, identity
from resnet.rundir.state import STATES, Verdict, name_of, own_verdict, row_of, signs_of_life
from resnet.rundir.status import read_status
from slurm.control import controller
from slurm.queue import STARTED, WAITING, Job

GRACE_SECONDS = 60
"""A run is `queued` before its job is sent, and `stopped` before that is requeued: neither is the end yet."""
CLOCKS_DIFFER_SECONDS = 5
INDEX, VERSION = ".status-index", "1"
"""File beside many runs that keeps what those that are over say of themselves."""
_UNSURE = (None, "peer", "nccl", "killed")
"""Failures, by a run's own word, of which Slurm may know the cause."""


class Run(NamedTuple):
    """What a run directory says."""

    folder: Path
    status: dict[str, Any]
    sent: dict[str, Any]
    """Content of slurm/job.json; empty for a run that was not sent to Slurm."""
    job_id: str | None
    problem: str | None
    """Why status.json cannot be read."""
    chain: Chain | None
    places: Sequence[Sent] = ()
    """The jobs by which it waits, where they are several and none has it."""

    @property
    def client(self) -> dict[str, str]:
        """Variables by which Slurm's commands reach its cluster."""
        return self.sent.get("client") or {}


def find(text: str, root: str | Path) -> Path:
    """The directory of a run by name or path. Raises ValueError with names that are near."""
    for path in places(text, root):
        if (path / "status.json").is_file():
            return path
    return find_run(text, root)


def folders(root: str | Path, clusters: Sequence[str] = ()) -> list[Path]:
    """The run directories in a folder, or, where none is named, in ./runs and wherever runs were sent to from here.

    clusters: of which the profile may name another folder. Raises ValueError where one that was named is not there.
    """
    if root != ROOT:
        return _runs_in(Path(root), f"--root {root}")
    named = [*roots(root), *(place for cluster in clusters if (place := _root_of(cluster)))]
    return [run for place in distinct(path.absolute() for path in named) for run in _shown(place)]


def _root_of(cluster: str) -> Path | None:
    from slurm.profile import load_profile

    root = load_profile(cluster).run_root
    return Path(root).expanduser() if root else None


def _shown(place: Path) -> list[Path]:
    """The runs in a folder that need not be there, named from here on where that is shorter."""
    near = place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place
    return _runs_in(near, str(near)) if place.is_dir() else []


def _runs_in(folder: Path, shown: str) -> list[Path]:
    try:
        return runs_in(folder.expanduser())
    except OSError as error:
        raise ValueError(f"{shown}: {error.strerror}") from error


def rows(run_dirs: Iterable[Path]) -> list[dict[str, Any]]:
    """What is true of runs, in their order, as plain values; asks Slurm once for all of them, or not at all."""
    runs = _read_all([*run_dirs])
    answers = _ask_slurm(runs)
    found = []
    for run in runs:
        row = _row(run, answers)
        if row["state"] == "failed" and run.status.get("state") in ("running", "queued"):
            # It may have ended well between the two looks.
            row = _row(_read(run.folder), answers)
        found.append(row)
    return found


def ordered(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that need a look first, and of each state the newest."""
    return sorted(found, key=lambda row: (STATES.index(row["state"]), -(row["updated"] or 0), row["name"]))


def by_key(found: Iterable[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Rows by a key: numbers with the largest first, texts from A to Z, those without it last. Raises ValueError."""
    found = list(found)
    if found and key not in found[0]:
        raise ValueError(f"--sort {key}: {suggestion(key, sorted(found[0]))}")

    def place(row: dict[str, Any]) -> tuple[bool, float, str]:
        figure = number(row[key])
        return row[key] is None, -figure if figure is not None else 0.0, str(row[key])

    return sorted(found, key=place)


def matches(row: Mapping[str, Any], wanted: str) -> bool:
    """Whether a run is what `--filter` asks for: KEY=VALUE of its row or recipe, or a text in its name or recipe."""
    key, equals, value = wanted.partition("=")
    if not equals:
        return wanted.lower() in f"{row['name']} {row['recipe']}".lower()
    found = (row["differs"] or {}).get(key, row.get(key))
    figure = number(found)
    try:
        return figure == float(value) if figure is not None else str(found).lower() == value.lower()
    except ValueError:
        return False


def _read_all(run_dirs: Sequence[Path]) -> list[Run]:
    """What the runs say; where a folder holds many, of those that are over as it was when they were last read."""
    # Not by Path.parent, which takes longer than to read an index.
    parents = [os.path.dirname(run) for run in run_dirs]
    many = {parent for parent, number in Counter(parents).items() if number >= LEAST_RUNS}
    indexes = {parent: Index(Path(parent, INDEX), VERSION) for parent in many}
    pairs = zip(run_dirs, parents, strict=True)
    runs = [_read_again(run, indexes[parent]) if parent in many else _read(run) for run, parent in pairs]
    for index in indexes.values():
        index.save()
    return runs


def _read_again(folder: Path, index: Index) -> Run:
    files = [identity(f"{folder}/status.json"), identity(f"{folder}/slurm/job.json")]
    known = index.get(folder.name, files)
    if known and all(isinstance(known.get(key), dict) for key in ("status", "sent")):
        return _run(folder, known["status"], known["sent"], None)
    run = _read(folder)
    if run.problem is None and run.status.get("state") in ("finished", "failed", "stopped"):
        sent = {key: run.sent[key] for key in ("job_id", "name", "cluster", "client", "held") if key in run.sent}
        index.put(folder.name, files, {"status": run.status, "sent": sent})
    return run


def _read(folder: Path) -> Run:
    status, sent, problem, places = {}, {}, None, []
    try:
        status = read_status(folder)
    except (ValueError, OSError) as error:
        problem = str(error)
    if not status and not folder.is_dir():
        problem = "the folder is gone"
    with contextlib.suppress(OSError, ValueError):
        sent = read_json(job_file(folder))
        if sent.get("requests") and (job := read_job(folder)):
            sent, places = asdict(job), waiting_places(folder)
    return _run(folder, status, sent, problem)._replace(places=places)


def waiting_places(folder: Path) -> list[Sent]:
    """The jobs by which a run waits; empty where one has it, or it was sent as one. Raises ValueError."""
    claim = claim_of(folder)
    return [] if claim and claim.content.get("request") else requests_of(folder)


def _run(folder: Path, status: dict[str, Any], sent: dict[str, Any], problem: str | None) -> Run:
    # Else a job of the user's own, in which the trainer was started by hand.
    job_id = sent.get("job_id") or (status.get("job_id") if status.get("state") == "running" else None)
    if sent.get("held") and status.get("state") not in ("running", "queued"):
        # Which the user holds, and which goes on without it.
        job_id = None
    return Run(folder, status, sent, str(job_id) if job_id else None, problem, read_chain(folder))


def _ask_slurm(runs: Sequence[Run]) -> Answers:
    """What each controller says of the runs, and of their chains: each is asked once."""
    open_runs = [run for run in runs if run.job_id and run.status.get("state") not in (None, "finished")]
    asked: dict[Any, _Asked] = {}
    for run in open_runs:
        for job in run.places or (run,):
            asked.setdefault(controller(job.client), _Asked(job.client, [], [])).jobs.append((run, str(job.job_id)))
    for chain in [run.chain for run in runs if run.chain and run.chain.open_jobs]:
        asked.setdefault(controller(chain.client), _Asked(chain.client, [], [])).chains.append(chain)
    return {key: ask_slurm(partial(_forgotten, one), one.client) for key, one in asked.items()}


class _Asked(NamedTuple):
    """What a controller is asked for."""

    client: Mapping[str, str]
    jobs: list[tuple[Run, str]]
    chains: list[Chain]


def _forgotten(asked: _Asked, known: Mapping[str, Job]) -> Iterator[str]:
    for run, job_id in asked.jobs:
        state, failure, reason = (run.status.get(key) for key in ("state", "failure", "reason"))
        # As thousands of a sweep's trials may be that early stopping ended.
        as_told = state == "stopped" and reason in ENDS
        unsure = not as_told and (state != "failed" or failure in _UNSURE)
        if unsure and _named(run, job_id, known) is None:
            yield job_id
    for chain in asked.chains:
        yield from chain.forgotten(known)


def _named(run: Run, job_id: str | None, jobs: Mapping[str, Job]) -> Job | None:
    if not run.sent:
        return jobs.get(job_id or "")
    return job_by_name(jobs, job_id, run.sent.get("name") or name_of(run.folder))


def _row(run: Run, answers: Answers) -> dict[str, Any]:
    now, status, places = time.time(), run.status, place_rows(run.places, answers)
    if run.places:
        sent = newest(run.places, answers)
        run = run._replace(sent=asdict(sent), job_id=sent.job_id)
        job, trouble = slurms_job(sent, answers), trouble_of(run.places, answers)
    else:
        jobs, trouble = answer_of(run.client, answers)
        job = _named(run, run.job_id, jobs)
    told = job._replace(reason=in_words(places), start=None) if job and job.state in WAITING and places else job
    alive, silent = signs_of_life(run.folder, status, bool(run.sent), now)
    cancelled = status.get("state") != "finished" and os.path.exists(f"{run.folder}/slurm/cancel")
    verdict = effective(status, told, run.job_id, trouble, alive, silent, cancelled, now)
    if run.problem:
        verdict = Verdict("damaged", None, run.problem, True)
    return row_of(run.folder, status, verdict, now) | {
        "cluster": run.sent.get("cluster"),
        "slurm_state": job.state if job else None,
        "slurm_reason": job.reason if job else None,
        "job_id": run.job_id or status.get("job_id"),
        "nodes": job.nodes or None if job else None,
        "expected_start": job.start if job and job.state in WAITING else None,
        "time_left_s": job.time_left_s if job and job.state in STARTED else None,
        "places": places if verdict.state == "queued" else [],
        "chain": step_rows(run.chain, *answer_of(run.chain.client, answers)) if run.chain else [],
    }


def effective(
    status: Mapping[str, Any],
    job: Job | None = None,
    job_id: str | None = None,
    trouble: str | None = None,
    alive: bool | None = None,
    silent: float = 0.0,
    cancelled: bool = False,
    now: float = 0.0,
) -> Verdict:
    """The true state of a run.

    status: what status.json says. job: Slurm's word on job `job_id`, None where it knows nothing or, with `trouble`,
    could not be asked. alive: whether the trainer's process lives, None if that cannot be seen from here. silent:
    seconds since it gave a sign of life. cancelled: the user has asked for the end. now: unix time.
    """
    state, updated = status.get("state"), number(status.get("updated")) or 0
    as_told = own_verdict(status, alive, silent)
    if state == "finished" or as_told.state != state:
        return as_told
    reason, ended = as_told.reason, as_told.over
    if job_id is None or (state == "queued" and now - updated < GRACE_SECONDS and (job is None or job.over)):
        return as_told
    if job is None and trouble:
        over = ended and (state == "failed" or now - updated > GRACE_SECONDS)
        return as_told._replace(reason=reason or trouble, over=over)
    if job is None or job.over:
        return _without_job(as_told, job, job_id, cancelled)
    note = "being cancelled" if cancelled else None
    if job.state in WAITING:
        again = (f"requeued ({reason})" if reason else "requeued") if ended or state == "running" or reason else None
        expected = f"expected in {format_duration(job.start - now)}" if job.start and job.start > now else None
        return Verdict("queued", None, ", ".join(filter(None, (note, again, job.reason, expected))) or None, False)
    if job.start and updated < job.start - CLOCKS_DIFFER_SECONDS:
        # Of the attempt before: this one has not come to write its own.
        return Verdict("running", None, note or "starting", False)
    return as_told._replace(reason=note or reason, over=False)


def _without_job(told: Verdict, job: Job | None, job_id: str, cancelled: bool) -> Verdict:
    """Of a run whose job has ended, and is not in the queue again."""
    how = f"Slurm ended job {job_id}: {job.state}" if job else f"job {job_id} is gone, and Slurm knows nothing of it"
    kind = job.failure if job else None
    if cancelled and kind is None:
        kind = "user"
    if told.state in ("running", "queued"):
        if job and kind is None:
            how = f"job {job_id} ended ({job.state}), and its run did not say how"
        return Verdict("failed", kind or ("crash" if job else "gone"), how, True)
    if told.state == "stopped":
        known = kind if kind != "crash" else None
        return told._replace(failure=told.failure or known)
    if told.failure in _UNSURE and kind in ("oom", "timeout", "node", "preempted"):
        return told._replace(failure=kind, reason="; ".join(filter(None, (how, told.reason))))
    return told
