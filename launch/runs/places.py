"""The places in which one run waits: what Slurm says of each of its requests, as plain rows and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launch.runs.asked import Answer, job_by_name
from launch.runs.job_record import Job, place_in_words
from recipes.text import plural
from slurm import queue
from slurm.control import controller

Answers = Mapping[tuple[tuple[str, str], ...], Answer]
"""What each controller says, by `slurm.control.controller`."""
Row = dict[str, Any]


def answer_of(client: Mapping[str, str], answers: Answers) -> Answer:
    """What a cluster's controller says; nothing where it was not asked."""
    return answers.get(controller(client), ({}, None))


def slurms_job(job: Job, answers: Answers) -> queue.Job | None:
    """What its controller says of a request's job."""
    return job_by_name(answer_of(job.client, answers)[0], job.job_id, job.name)


def newest(jobs: Sequence[Job], answers: Answers) -> Job:
    """Of the jobs of one run the one that has its nodes, else one that waits, else one that may, else the first."""

    def rank(job: Job) -> int:
        found = slurms_job(job, answers)
        if found is None or found.over:
            return 2 if answer_of(job.client, answers)[1] else 3
        return 1 if found.state in queue.WAITING else 0

    return min(jobs, key=rank)


def trouble_of(jobs: Sequence[Job], answers: Answers) -> str | None:
    """Why a controller of one of these jobs could not be asked."""
    return next((told for job in jobs if (told := answer_of(job.client, answers)[1])), None)


def place_rows(jobs: Sequence[Job], answers: Answers) -> list[Row]:
    found = []
    for job in jobs:
        known = slurms_job(job, answers)
        said = job.known_profile
        found.append(
            {
                "cluster": job.cluster,
                "partition": said.get("partition"),
                "qos": said.get("qos"),
                "nodes": said.get("nodes"),
                "job_id": job.job_id,
                "state": known.state if known else None,
                "reason": (known.reason if known else None) or trouble_of([job], answers),
                "start": known.start if known and known.state in queue.WAITING else None,
            }
        )
    return found


def in_words(rows: Sequence[Row]) -> str:
    """As `waiting in 2 places: one low 1-2 nodes (Resources); two 4 nodes (Priority)`, and what else became of some."""
    waiting = [row for row in rows if row["state"] in queue.WAITING]
    others = [row for row in rows if row not in waiting]
    told = [f"{_place(row)} ({row['reason'] or 'not looked at yet'})" for row in waiting]
    lines = [f"waiting in {plural(len(waiting), 'place')}: {'; '.join(told)}"]
    lines += [f"not in {_place(row)}: {(row['state'] or row['reason'] or 'unknown').lower()}" for row in others]
    return "; ".join(lines)


def _place(row: Row) -> str:
    return place_in_words(row["cluster"], row)
