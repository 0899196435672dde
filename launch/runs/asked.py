"""What Slurm says of jobs that were sent from here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from slurm.queue import Job, accounted, queued

Answer = tuple[Mapping[str, Job], str | None]
"""Jobs by id, and why Slurm's word is missing."""


def ask_slurm(
    forgotten: Callable[[Mapping[str, Job]], Iterable[str]], client: Mapping[str, str] | None = None
) -> tuple[dict[str, Job], str | None]:
    """Jobs by id, and why Slurm's word is missing.

    forgotten: from what the queue holds to the ids for which accounting is to be asked. client: of which cluster.
    """
    try:
        known = queued(client)
    except ValueError as error:
        return {}, str(error)
    if known is None:
        return {}, "no squeue on this machine to ask"
    ids = list(forgotten(known))
    return known | (accounted(ids, client) if ids else {}), None


def job_by_name(jobs: Mapping[str, Job], job_id: str | None, name: str) -> Job | None:
    """A job of that name. Ids begin anew where a cluster is set up again: then the name is another's."""
    job = jobs.get(job_id or "")
    if job is None or not job.name:
        return job
    ours, theirs = (re.sub(r"[^0-9A-Za-z]+", "_", text) for text in (name, job.name))
    return job if ours == theirs else None
