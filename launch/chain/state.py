"""How the steps of a chain are: their own word put together with Slurm's, as plain rows and as text."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recipes.text import format_duration
from resnet.process.processes import is_alive
from resnet.rundir.chain import OVER, job_name, log_of, newest_folder, read_chain, read_step
from slurm.queue import WAITING, Job, accounted, queued

Row = dict[str, Any]


class Chain(NamedTuple):
    """What the newest chain of a run or a sweep says of itself."""

    folder: Path
    content: dict[str, Any]
    told: list[dict[str, Any]]
    """By step, from its own file."""

    @property
    def open_jobs(self) -> list[str]:
        """Ids of the jobs of steps that may be to come: those behind one that failed are not."""
        found = []
        for step, told in zip(self.content["steps"], self.told, strict=True):
            if told.get("state") not in OVER:
                found += [step["job_id"]] if step["job_id"] else []
            elif told["state"] != "finished":
                break
        return found


def read(subject: Path) -> Chain | None:
    """The newest chain; None where there is none that can be read."""
    with contextlib.suppress(ValueError, OSError):
        if folder := newest_folder(subject):
            content = read_chain(folder)
            numbers = range(1, len(content["steps"]) + 1)
            return Chain(folder, content, [read_step(folder, content, number) for number in numbers])
    return None


def chain_rows(subject: Path) -> list[Row]:
    """The steps of the newest chain, in order; empty without one. Asks Slurm where one has not ended."""
    chain = read(subject)
    if chain is None:
        return []
    jobs, trouble = {}, None
    if chain.open_jobs:
        try:
            jobs = known(chain.open_jobs)
        except ValueError as error:
            trouble = str(error)
    return step_rows(chain, jobs, trouble)


def known(job_ids: Sequence[str]) -> dict[str, Job]:
    """What Slurm knows of jobs. Raises ValueError where it does not answer, or is not here."""
    found = queued()
    if found is None:
        raise ValueError("no squeue on this machine to ask")
    forgotten = [job_id for job_id in job_ids if job_id not in found]
    return found | (accounted(forgotten) if forgotten else {})


def step_rows(chain: Chain, jobs: Mapping[str, Job], trouble: str | None) -> list[Row]:
    """The steps as plain values. jobs: by id. trouble: why Slurm could not be asked."""
    found: list[Row] = []
    for number, (step, told) in enumerate(zip(chain.content["steps"], chain.told, strict=True), 1):
        failed = next((row for row in found if row["state"] not in ("finished", "running", "queued")), None)
        state, reason = told.get("state"), told.get("reason")
        if state not in OVER:
            job = jobs.get(step["job_id"] or "")
            if job and job.name and job.name != job_name(chain.content, number):
                # Ids begin anew where a cluster is set up again.
                job = None
            state, reason = _state(chain, step, told, job, trouble, failed)
        start, end = told.get("start"), told.get("end")
        if state == "running":
            end = time.time()
        log = log_of(chain.folder, chain.content, number)
        found.append(
            {
                "step": step["command"],
                "state": state,
                "seconds": end - start if start and end else None,
                "job_id": step["job_id"],
                "acts_on": step["acts_on"],
                "makes": step["makes"],
                "reason": reason,
                "log": str(log) if log.exists() else None,
            }
        )
    return found


def _state(
    chain: Chain, step: dict[str, Any], told: dict[str, Any], job: Job | None, trouble: str | None, failed: Any
) -> tuple[str, str | None]:
    """State and reason of a step that has not said how it ended."""
    job_id, content = step["job_id"], chain.content
    if failed and not told:
        return "skipped", None
    if job_id is None:
        alive = content.get("host") != os.uname().nodename or is_alive(content.get("pid", 0))
        if not alive and not told:
            return "skipped", None
        return (told.get("state", "queued"), None) if alive else ("failed", f"process {content['pid']} is gone")
    if job is None and trouble:
        return told.get("state", "queued"), trouble
    if job is not None and not job.over:
        return ("queued" if job.state in WAITING else "running"), told.get("reason")
    if not told and (job is None or job.state == "CANCELLED"):
        if job is None or "Dependency" in (job.reason or ""):
            return "skipped", "what it waited for did not finish"
        return "cancelled", "before it began"
    how = f"Slurm ended job {job_id}: {job.state}" if job else f"job {job_id} is gone, and Slurm knows nothing of it"
    return "cancelled" if job and job.state == "CANCELLED" else "failed", how


def goes_on(rows: Sequence[Row]) -> bool:
    return any(row["state"] in ("queued", "running") for row in rows)


def note(rows: Sequence[Row] | None) -> str:
    """As `chain 2/4: quantize running`; empty without a chain."""
    return f"chain {_where(rows)}" if rows else ""


def _where(rows: Sequence[Row]) -> str:
    number, row = next(((n, row) for n, row in enumerate(rows, 1) if row["state"] != "finished"), (len(rows), rows[-1]))
    return f"{number}/{len(rows)}: {row['step']} {row['state']}"


def lines(rows: Sequence[Row]) -> list[str]:
    """A line for each step, and how one went wrong."""
    told = []
    for number, row in enumerate(rows, 1):
        facts = [row["state"]]
        facts += [format_duration(row["seconds"])] if row["seconds"] is not None else []
        facts += [f"job {row['job_id']}"] if row["job_id"] else []
        facts += [f"makes {Path(row['makes']).name}"] if row["makes"] else []
        facts += [row["log"]] if row["log"] else []
        told.append(f"    {number} {row['step']:8}  {', '.join(facts)}")
        told += [f"      {row['reason']}"] if row["reason"] else []
    return [f"  {'chain':10}  {_where(rows)}", *told]
