"""What Slurm says of jobs: all of a user's in one `squeue`, and those that it has forgotten in one `sacct`."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from resnet.process.kept import Kept
from slurm.control import ask, controller, unix_time

IDS_PER_CALL = 11_000
"""Job ids, of up to ten digits, of one `sacct`: Linux takes 128 KiB in one argument."""

WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"})
"""States of a job that is to start, or to start again."""
STARTED = frozenset(
    {"CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
)
"""States of a job that has its nodes. All others are of jobs that are over."""
FAILURES = {
    "OUT_OF_MEMORY": "oom",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "NODE_FAIL": "node",
    "BOOT_FAIL": "node",
    "PREEMPTED": "preempted",
    "CANCELLED": "user",
    "FAILED": "crash",
}
"""Our class of failure by the state in which Slurm ended a job."""


class Job(NamedTuple):
    """A job, or one task of an array, as Slurm sees it."""

    state: str
    """Slurm's long name, without what follows it (`CANCELLED by 0`)."""
    reason: str | None = None
    """Why it waits (Resources, Priority, ...) or ended."""
    start: float | None = None
    """Unix time of its newest start; of the expected one while it waits, where Slurm has worked it out."""
    time_left_s: float | None = None
    """To its time limit; None without one."""
    nodes: str = ""
    """Node list in Slurm's own short form, empty while it waits."""
    name: str = ""

    @property
    def over(self) -> bool:
        return self.state not in WAITING | STARTED

    @property
    def failure(self) -> str | None:
        """Class of failure of a job that is over; None where it ended well."""
        return FAILURES.get(self.state)


class _Answer(NamedTuple):
    """What the controller said when it was asked."""

    asked: float
    """Unix time at which."""
    jobs: dict[str, Job] | None
    trouble: str | None


_kept: Kept[_Answer] = Kept()
"""The answers that `asked_once` keeps, by controller."""


@contextlib.contextmanager
def asked_once() -> Iterator[None]:
    """Within it each queue is asked for once, however many runs a command looks at: all of them as of one moment.

    A controller serves all users: `launch cancel` of a hundred runs is to be one question, and not a hundred.
    """
    with _kept.within():
        yield


def queued(client: Mapping[str, str] | None = None, since: float = 0.0) -> dict[str, Job] | None:
    """All jobs of this user by id ("12", or "12_3" in an array) that the controller knows; None without Slurm.

    Those that ended in the last minutes are there too (Slurm's MinJobAge).
    client: variables that choose the controller, as a profile has them.
    since: unix time; of what `asked_once` keeps, an answer from before it is not taken.
    Raises ValueError where Slurm does not answer.
    """
    answers = _kept.answers
    if answers is None:
        return _ask_for_queue(client)
    key = controller(client)
    if key not in answers or answers[key].asked <= since:
        asked = time.time()
        try:
            answers[key] = _Answer(asked, _ask_for_queue(client), None)
        except ValueError as error:
            answers[key] = _Answer(asked, None, str(error))
    if trouble := answers[key].trouble:
        raise ValueError(trouble)
    return answers[key].jobs


def _ask_for_queue(client: Mapping[str, str] | None) -> dict[str, Job] | None:
    if shutil.which("squeue") is None:
        return None
    # The name comes last: it may be any text.
    shown = "--format=%i|%T|%S|%L|%N|%r|%j"
    jobs = {}
    command = ["squeue", "--noheader", "--array", "--all", "--me", "--states=all", shown]
    for line in ask(command, client=client).split("\n"):
        if line.count("|") >= 6:
            job_id, state, start, left, nodes, reason, name = line.split("|", 6)
            jobs[job_id] = Job(
                _state(state), _known(reason), unix_time(start), duration(left), _known(nodes) or "", name
            )
    return jobs


def accounted(job_ids: Iterable[str], client: Mapping[str, str] | None = None) -> dict[str, Job]:
    """What accounting knows of jobs, by id; of one that was requeued the newest. Empty where there is no accounting."""
    wanted = {job_id for job_id in job_ids if re.fullmatch(r"\d+([_+]\d+)?", job_id)}
    # Asked for as a whole, an array is one id however many tasks it has.
    ids = sorted({re.split("[_+]", job_id)[0] for job_id in wanted})
    jobs = {}
    if shutil.which("sacct") is None:
        return jobs
    for first in range(0, len(ids), IDS_PER_CALL):
        chosen = ",".join(ids[first : first + IDS_PER_CALL])
        command = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State,Start,NodeList,JobName"]
        # Which reads no variable for it.
        command += [f"--clusters={client['SLURM_CLUSTERS']}"] if client and client.get("SLURM_CLUSTERS") else []
        try:
            lines = ask([*command, f"--jobs={chosen}"], client=client).split("\n")
        except ValueError:
            return jobs
        for line in lines:
            if line.count("|") >= 4:
                listed, state, start, nodes, name = line.split("|", 4)
                job = Job(_state(state), None, unix_time(start), None, _known(nodes) or "", name)
                jobs |= {job_id: job for job_id in _expand(listed) if job_id in wanted}
    return jobs


def _state(text: str) -> str:
    return (text.split() or ["UNKNOWN"])[0].rstrip("+")


def _known(text: str) -> str | None:
    return None if text in ("", "None", "N/A", "NONE", "Unknown", "None assigned") else text


def duration(text: str) -> float | None:
    """Of Slurm's [days-][hours:]minutes:seconds; None for its words."""
    if not (match := re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)):
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _expand(listed: str) -> Iterator[str]:
    """The ids that accounting writes as one: 12_[0-2,7%4] are tasks of an array that never started."""
    base, bracket, tasks = listed.partition("_[")
    if not bracket:
        yield listed
        return
    for first, last, step in re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", tasks.partition("%")[0]):
        for task in range(int(first), int(last or first) + 1, int(step or 1)):
            yield f"{base}_{task}"
