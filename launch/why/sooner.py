"""What a waiting run could ask for instead to start sooner: holes in the schedule, and a few questions to Slurm.

`sbatch --test-only` is asked of what has no queue of its own to wait behind, as another partition. Behind others it
adds up what those ask for, and knows nothing of backfill: a hole before the next of them starts is found by nodes that
are idle and the start that Slurm plans for it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from launch.why.facts import Facts
from launch.why.reasons import PARTITION, Move
from launch.why.sizes import sizes_up_to
from recipes.text import format_duration, plural
from slurm.pending import Ahead, Partition, partitions
from slurm.profile import seconds
from slurm.would_start import ask_start

MOST_QUESTIONS = 4
MOST_OF_A_KIND = 2
SPARE = 1.3
"""Times what the run says it still takes, for a limit that is no tighter than that."""
LEAST_LEADS = 3
"""Signal leads that a limit has to hold at least: a slice that only starts and saves is of no use."""


class Queue(NamedTuple):
    """What is known of a job that waits and of what is around it."""

    nodes: int
    """The fewest with which it starts."""
    limit: float
    """Seconds that it asks for."""
    least_limit: float
    """Seconds below which a limit is of no use."""
    idle: int
    """Nodes of its partitions."""
    hole: float | None
    """Seconds until the next job ahead is to start; infinite where none is ahead, None where it is not known."""
    own: tuple[str, ...]
    """Its partitions."""
    known: list[Partition]
    """All that the user may see."""


class Request(NamedTuple):
    """Something else to ask for."""

    what: str
    options: tuple[str, ...]
    """Of sbatch."""
    command: str
    """What a user types for it."""
    cost: float
    """How much it changes the run: the smaller the better."""


class Offer(NamedTuple):
    """Another request, and when it would start."""

    request: Request
    start: float
    """Unix time."""
    by: str
    """Where that is from."""
    preempts: int = 0
    """Jobs that would have to make room."""

    @property
    def cost(self) -> float:
        return self.request.cost * (1 + self.preempts)

    def words(self, now: float) -> str:
        wait = self.start - now
        when = "now" if wait < 60 else f"in {format_duration(wait)}"
        others = f", in the place of {plural(self.preempts, 'job')}" if self.preempts else ""
        return f"{self.request.what} it would start {when}{others} ({self.by})"


def offers(facts: Facts, job: dict[str, str], ahead: Ahead | None, moves: frozenset[Move]) -> list[Offer]:
    """Other requests with which the run would start by itself. Raises ValueError where Slurm does not answer.

    job: of `slurm.pending.show_job`. ahead: the queue that it is in. moves: requests by which its reason would be gone.
    """
    script = _script(facts)
    if script is None or not moves:
        return []
    queue = _queue(facts, job, ahead)
    found = [*_in_holes(facts, queue)] if "hole" in moves else []
    # A shorter limit, or fewer nodes, are of no use behind others but in a hole.
    if found:
        moves &= PARTITION
    kinds = [find(facts, queue) for move, find in _OTHERS.items() if move in moves]
    for request in [*_in_turn(kinds)][:MOST_QUESTIONS]:
        answer = ask_start(script, request.options, facts.client)
        if answer.start and not answer.refused:
            found.append(Offer(request, answer.start, "sbatch --test-only", answer.preempts))
    return found


def _script(facts: Facts) -> Path | None:
    """The batch script as it was sent; None for an array, whose jobs share one request."""
    request = facts.job.request if facts.job else ""
    file = facts.run_dir / "slurm" / request / f"{facts.row['job_id']}_submission.sh"
    return file if file.is_file() else None


def _queue(facts: Facts, job: dict[str, str], ahead: Ahead | None) -> Queue:
    known, own = partitions(), tuple(job.get("Partition", "").split(","))
    hole = None
    if ahead:
        hole = math.inf if ahead.place == 1 else ahead.next_start and max(0.0, ahead.next_start - facts.now)
    limit = 0.0
    with contextlib.suppress(ValueError):
        limit = float(seconds(job.get("TimeLimit", "")))
    lead = float((facts.job.profile.get("signal_lead") if facts.job else None) or 0)
    return Queue(
        nodes=int(job.get("NumNodes", "1").partition("-")[0]),
        limit=limit,
        least_limit=max(60.0, LEAST_LEADS * lead),
        idle=max((one.idle for one in known if one.name in own and one.is_up), default=0),
        hole=hole,
        own=own,
        known=known,
    )


def _in_holes(facts: Facts, queue: Queue) -> Iterator[Offer]:
    """What fits on the nodes that are idle, until the next job ahead starts."""
    if not queue.idle or queue.hole is None:
        return
    size = queue.nodes if queue.idle >= queue.nodes else next(_sizes_below(facts, queue, queue.idle), None)
    minutes = int(min(queue.hole, queue.limit) // 60)
    if size is None or 60 * minutes < queue.least_limit or (size == queue.nodes and 60 * minutes >= queue.limit):
        return
    request = _smaller(facts, queue, size) if size < queue.nodes else _limited(facts, queue, minutes)
    if size < queue.nodes and 60 * minutes < queue.limit:
        what, command = f"{request.what}, with a limit of {format_duration(60 * minutes)}", request.command
        request = request._replace(what=what, command=f"{command} slurm.time={minutes}")
    idle = f"{plural(queue.idle, 'node')} {'is' if queue.idle == 1 else 'are'} idle"
    until = "" if math.isinf(queue.hole) else f" and the next job starts in {format_duration(queue.hole)}"
    yield Offer(request, facts.now, f"{idle}{until}: sinfo, squeue")


def _in_turn(kinds: list[Iterator[Request]]) -> Iterator[Request]:
    """The first of each kind, then the second of each."""
    for _ in range(MOST_OF_A_KIND):
        for kind in kinds:
            if (request := next(kind, None)) is not None:
                yield request


def _other_partitions(facts: Facts, queue: Queue) -> Iterator[Request]:
    """Those with the most idle nodes, if the time fits."""
    able = [one for one in queue.known if one.is_up and one.name not in queue.own]
    able = [one for one in able if one.limit is None or one.limit >= queue.limit]
    for one in sorted(able, key=lambda one: -one.idle):
        command = f"scontrol update JobId={facts.row['job_id']} Partition={one.name}"
        yield Request(f"in partition {one.name}", (f"--partition={one.name}",), command, 1.0)


def _fewer_nodes(facts: Facts, queue: Queue) -> Iterator[Request]:
    for size in _sizes_below(facts, queue, queue.nodes - 1):
        yield _smaller(facts, queue, size)


def _smaller(facts: Facts, queue: Queue, size: int) -> Request:
    run = facts.typed
    command = f"launch cancel {run} && launch retry {run} slurm.nodes={size}-{queue.nodes}"
    return Request(f"on {size} of {queue.nodes} nodes", (f"--nodes={size}",), command, queue.nodes / size)


def _sizes_below(facts: Facts, queue: Queue, most: int) -> Iterator[int]:
    """Numbers of nodes at which the run stays the same, the largest first."""
    yield from (size for size in reversed(sizes_up_to(facts, queue.nodes)) if size <= most)


def _shorter(facts: Facts, queue: Queue) -> Iterator[Request]:
    """A limit that the partition allows, or that is what the run still takes."""
    allowed = min((one.limit for one in queue.known if one.name in queue.own and one.limit), default=math.inf)
    left = facts.status.get("eta_s")
    for limit in [allowed, *([SPARE * float(left)] if left else [])]:
        if queue.least_limit <= limit < queue.limit:
            yield _limited(facts, queue, math.ceil(limit / 60))


_OTHERS: dict[Move, Callable[[Facts, Queue], Iterator[Request]]] = {
    "partition": _other_partitions,
    "nodes": _fewer_nodes,
    "time": _shorter,
}


def _limited(facts: Facts, queue: Queue, minutes: int) -> Request:
    command = f"scontrol update JobId={facts.row['job_id']} TimeLimit={minutes}"
    what = f"with a limit of {format_duration(60 * minutes)}"
    return Request(what, (f"--time={minutes}",), command, queue.limit / (60 * minutes) / 10)
