"""How an attempt ended, from what srun said, the ranks' logs and the run's own word. Only the standard library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

TAIL_LINES = 5
_TASK = re.compile(r"srun: error: (?P<node>[^:\s]+): tasks? (?P<ranks>(?P<rank>\d+)[-,\d]*): (?P<how>.+)")
_NODE = re.compile(r"srun: error: (?:Node failure on|Task launch for \S+ failed on node) ([^:\s]+)")
_EXITED = "Exited with exit code"
_CANCELLED = re.compile(r"\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+ (?:DUE TO )?([A-Z ]*)\*\*\*")


MENDABLE = ("killed", "hang", "node", "peer", "nccl", "device", "sdc", "slurm")
"""Classes of failures that another start may mend, on other nodes or on the same; the others would only come again."""
OF_A_BAD_NODE = ("node", "sdc")
"""Those after which a node is left out at once; after the others when they come again on it."""


class End(NamedTuple):
    """How an attempt ended."""

    outcome: str
    """finished, stopped (saved, to be continued), failed, or killed (cut off without a word, to be continued)."""
    reason: str
    failure: str | None = None
    """Class of a failure, as in status.json."""
    node: str | None = None
    """Node on which it went wrong, where it may be the node's fault."""


class Fate(NamedTuple):
    """What srun says of a rank that did not end well."""

    node: str
    rank: int
    how: str

    @property
    def by_signal(self) -> str | None:
        """The signal that asks to stop, which kills who does not listen yet (the imports take seconds)."""
        names = {"User defined signal 2": "SIGUSR2", "Terminated": "SIGTERM"}
        return next((name for words, name in names.items() if self.how.startswith(words)), None)

    @property
    def was_killed(self) -> bool:
        """By a signal, which it may have brought upon itself (Segmentation fault)."""
        return not (self.how.startswith(_EXITED) or self.by_signal or "memory" in self.how.lower())


def fates(lines: Sequence[str]) -> list[Fate]:
    """Of the ranks that srun reports, in its order."""
    found = (match for line in lines if (match := _TASK.match(line)))
    return [Fate(match["node"], int(match["rank"]), match["how"]) for match in found]


def first_fate(lines: Sequence[str]) -> Fate | None:
    """Of the first rank that srun reports."""
    return next(iter(fates(lines)), None)


def node_of_rank(lines: Sequence[str], rank: int) -> str | None:
    """Where srun says that a rank was which has not ended well."""
    for match in filter(None, map(_TASK.match, lines)):
        ranges = re.findall(r"(\d+)(?:-(\d+))?", match["ranks"])
        if any(int(first) <= rank <= int(last or first) for first, last in ranges):
            return match["node"]
    return None


def is_bad(line: str) -> bool:
    """Whether srun says by it that a task is lost, or a node."""
    return bool(_TASK.match(line) or _NODE.match(line))


def only_signals(lines: Sequence[str]) -> bool:
    """Whether nobody can have written down why he failed."""
    return all(fate.was_killed for fate in fates(lines))


def lost_node(lines: Sequence[str]) -> str | None:
    """A node that failed by srun's word."""
    found = next((match for line in lines if (match := _NODE.search(line))), None)
    return found[1] if found else None


def end_of_training(
    code: int,
    lines: Sequence[str],
    status: Mapping[str, Any],
    told: str | None,
    logs: Path,
    failed_node: str | None,
    dead_node: str | None = None,
) -> End:
    """The end of the step of the ranks.

    code, lines: of srun. status: of the run. told: signal that the batch script got. logs: of the ranks.
    failed_node: node of the rank that failed first by its own record. dead_node: one of which srun never heard again.
    """
    state, fate = status.get("state"), _culprit(fates(lines), status)
    # A rank that has trained to its end may still be killed on its way out.
    if state == "finished" or (code == 0 and state == "stopped"):
        return End(state, status.get("reason") or "")
    dead_node = dead_node or lost_node(lines)
    if state == "failed" and status.get("failure") not in ("peer", "killed"):
        if dead_node and status.get("failure") in MENDABLE:
            # What the others saw of it: they hang, or NCCL fails.
            return _end_of_node(dead_node)
        return End("failed", status.get("reason") or "", status.get("failure"), failed_node)
    if state == "stopped":
        return End("stopped", told or status.get("reason") or "")
    if fate is None and told:
        return End("killed", told)
    if dead_node:
        return _end_of_node(dead_node)
    if fate is None:
        kind = "slurm" if any("contact slurm controller" in line for line in lines) else "crash"
        return End("failed", f"srun ended with code {code}{_last(lines)}", kind)
    if state == "failed" and fate.how.startswith(_EXITED):
        # Ranks that lost another one, of which srun says no more than they do.
        return End("failed", status.get("reason") or "", status.get("failure"), failed_node)
    return _end_of_rank(fate, lines, told, logs)


def _end_of_node(node: str) -> End:
    return End("killed", f"node {node} failed", "node", node)


def _culprit(found: Sequence[Fate], status: Mapping[str, Any]) -> Fate | None:
    """The rank by which it began: where the others say that they lost one, that which was killed."""
    lost = status.get("failure") in ("peer", "killed")
    killed = (fate for fate in found if lost and fate.was_killed)
    return next(killed, next(iter(found), None))


def _end_of_rank(fate: Fate, lines: Sequence[str], told: str | None, logs: Path) -> End:
    node, rank, how = fate
    if fate.by_signal:
        return End("stopped", f"signal {fate.by_signal}, before the ranks could listen")
    where, log = f"rank {rank} on {node}", logs / f"rank-{rank}.log"
    if "memory" in how.lower() or any("oom" in line.lower() for line in lines):
        return End("failed", f"{where} was killed for want of memory (slurm.mem, data.num_workers)", "oom")
    if fate.was_killed:
        was = "was killed" if "killed" in how.lower() else f"was ended by a {how.lower()}"
        return End("killed", told) if told else End("failed", f"{where} {was}{tail(log)}", "killed", node)
    kind = "mistake" if how.endswith("exit code 2") else "crash"
    for speaker in (rank, 0):
        if said := _message(logs / f"rank-{speaker}.log"):
            return End("failed", f"{where}: {said}", kind, node if kind == "crash" else None)
    return End("failed", f"{where}: {how[0].lower()}{how[1:]}{tail(log)}", kind, node)


def end_of_staging(code: int, lines: Sequence[str], nodes: Sequence[str], logs: Path) -> End:
    """The end of a step that was to bring the data to the nodes, and did not."""
    if dead := lost_node(lines):
        return _end_of_node(dead)
    fate = first_fate(lines) or Fate(nodes[0], 0, f"code {code}{_last(lines)}")
    if fate.by_signal:
        return End("stopped", f"signal {fate.by_signal}, while the data was staged")
    return End("failed", f"staging failed on {fate.node}: {fate.how}{tail(logs / f'stage-{fate.rank}.log')}", "data")


def port_was_taken(log: Path, start: int) -> bool:
    """Whether rank 0 says, after so many bytes of its log, that it could not listen on its port."""
    try:
        with open(log, "rb") as file:
            file.seek(start)
            return b"EADDRINUSE" in file.read()
    except OSError:
        return False


def slurms_word(log: str) -> str | None:
    """Why Slurm ended the job, by the batch script's log (TIME LIMIT, PREEMPTION, JOB REQUEUE ...).

    Empty for a user's scancel, None where Slurm has not ended it. The job's state, COMPLETING, would not tell.
    """
    found = _CANCELLED.findall(log)
    return found[-1].strip() if found else None


def _message(file: Path) -> str:
    """The program's own last message in a rank's log."""
    found = re.findall(r"^train\.py: (.*(?:\n  .*)*)", _end_of(file), re.MULTILINE)
    return found[-1] if found else ""


def tail(file: Path) -> str:
    """The last lines of a rank's log, indented, each after a line break."""
    return _last([line for line in _end_of(file).splitlines() if not line.startswith("submitit ")])


def _end_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")[-10_000:]
    except OSError:
        return ""


def _last(lines: Sequence[str]) -> str:
    last = [line for line in lines if line.strip()][-TAIL_LINES:]
    return "".join(f"\n  {line}" for line in last)
