"""How the steps of a chain are: their own word put together with Slurm's, as plain rows and as text."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from launch.runs.asked import ask_slurm, job_by_name
from recipes.text import format_duration
from resnet.process.processes import is_alive, started
from resnet.rundir.chain import OVER, job_name, log_of, newest_folder, read_chain, read_step
from slurm.queue import WAITING, Job

Row = dict[str, Any]
DAMAGED = "damaged"
"""State of the one row of a chain whose chain.json cannot be read."""


class Chain(NamedTuple):
    """What the newest chain of a run or a sweep says of itself."""

    folder: Path
    content: dict[str, Any]
    told: list[dict[str, Any]]
    """By step, from its own file."""
    problem: str | None = None
    """Why chain.json cannot be read."""

    @property
    def open_jobs(self) -> dict[str, str]:
        """Jobs of steps that may be to come, with their names: those behind one that failed are not."""
        found = {}
        for number, (step, told) in enumerate(zip(self.content["steps"], self.told, strict=True), 1):
            if told.get("state") not in OVER:
                found |= {step["job_id"]: job_name(self.content, number)} if step["job_id"] else {}
            elif told["state"] != "finished":
                break
        return found

    @property
    def client(self) -> dict[str, str]:
        """Variables by which Slurm's commands reach the cluster of its jobs."""
        return self.content.get("client") or {}

    def forgotten(self, jobs: Mapping[str, Job]) -> list[str]:
        """Ids of open jobs of which the queue says nothing."""
        return [job_id for job_id, name in self.open_jobs.items() if job_by_name(jobs, job_id, name) is None]

    @property
    def is_elsewhere(self) -> bool:
        """Whether the steps are, or were, done by a process of another machine, which cannot be seen from here."""
        return self.content.get("host", os.uname().nodename) != os.uname().nodename

    @property
    def is_here(self) -> bool:
        """Whether the process that does the steps is one of this machine, and lives: not just one of its number."""
        pid, since = self.content.get("pid"), self.content.get("started")
        return not self.is_elsewhere and isinstance(pid, int) and is_alive(pid) and started(pid) == since


def this_process() -> dict[str, Any]:
    """What chain.json says of the process that does the steps."""
    return {"pid": os.getpid(), "host": os.uname().nodename, "started": started(os.getpid())}


@contextlib.contextmanager
def being_chained(subject: Path) -> Iterator[None]:
    """One `launch chain` of a run or a sweep at a time. Raises ValueError for a second one."""
    # Not in chain/: that is there once a chain is.
    with open(subject / "chain.lock", "w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"a chain of {subject.name} is under way, of another `launch chain`") from None
        yield


def read(subject: Path) -> Chain | None:
    """The newest chain; None where there is none."""
    folder = newest_folder(subject)
    if folder is None:
        return None
    try:
        content = read_chain(folder)
    except (ValueError, OSError) as error:
        return Chain(folder, {"steps": []}, [], str(error))
    numbers = range(1, len(content["steps"]) + 1)
    return Chain(folder, content, [read_step(folder, content, number) for number in numbers])


def chain_rows(subject: Path) -> list[Row]:
    """The steps of the newest chain, in order; empty without one. Asks Slurm where one has not ended."""
    chain = read(subject)
    return step_rows(chain, *known(chain)) if chain else []


def known(chain: Chain) -> tuple[dict[str, Job], str | None]:
    """Jobs by id, and why Slurm, where it has to be asked, does not answer."""
    return ask_slurm(chain.forgotten, chain.client) if chain.open_jobs else ({}, None)


def step_rows(chain: Chain, jobs: Mapping[str, Job], trouble: str | None) -> list[Row]:
    """The steps as plain values; of a chain that cannot be read, one that says so. jobs: by id.

    trouble: why Slurm could not be asked.
    """
    if chain.problem:
        nothing = dict.fromkeys(("seconds", "job_id", "acts_on", "makes", "log"))
        return [{"step": "chain.json", "state": DAMAGED, **nothing, "reason": chain.problem}]
    found: list[Row] = []
    for number, (step, told) in enumerate(zip(chain.content["steps"], chain.told, strict=True), 1):
        failed = next((row for row in found if row["state"] not in ("finished", "running", "queued")), None)
        state, reason = told.get("state"), told.get("reason")
        if state not in OVER:
            job = job_by_name(jobs, step["job_id"], job_name(chain.content, number))
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
    job_id = step["job_id"]
    if failed and not told:
        return "skipped", None
    if job_id is None:
        alive = chain.is_elsewhere or chain.is_here
        if not alive and not told:
            return "skipped", None
        gone = f"process {chain.content.get('pid')} is gone"
        return (told.get("state", "queued"), None) if alive else ("failed", gone)
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
