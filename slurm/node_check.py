"""The start check of a job: every rank looks at its GPU and its node, and who is found bad is named. Python 3.9."""

from __future__ import annotations

import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resnet.process.check_lines import told
from slurm.control import free_port
from slurm.ends import End
from slurm.nodes import Nodes

LIMIT_MINUTES = 2
"""Of the whole check, after which its step ends: a node whose GPU or network hangs does not answer."""
SLOW = 0.5
"""Share of the median of all nodes below which a node's network is slow."""
SKEW_SECONDS = 2.0
LEAST_FREE_GB = 1.0
"""In the folder for temporary files, and in shared memory."""
_MOST_NOTES = 10


class Checked(NamedTuple):
    """What a start check has found."""

    bad: dict[str, str]
    """By node why it is not to be used."""
    notes: list[str]
    """What else a person may want to know of the nodes."""
    all_reduce_gbs: float | None
    """Of all ranks, by the slowest; None for one rank, or where they could not join."""
    seconds: float

    @property
    def end(self) -> End | None:
        """Of the attempt, where a node is bad."""
        for node, why in self.bad.items():
            return End("killed", f"{node} failed the start check: {why}", "node", node)
        return None


def check_nodes(
    jobs: Mapping[str, Any],
    of_job: Nodes,
    nodes: Sequence[str],
    run_dir: Path,
    logs: Path,
    srun: Callable[[Sequence[str], Mapping[str, str]], int],
) -> Checked:
    """Look at these nodes of a job by a step of all their ranks, and print what was found.

    logs: of the attempt, of which `check.log` holds what the ranks print. srun: runs a step to its end, by its words
    and variables of its environment.
    """
    log, begin = logs / "check.log", time.time()
    seen = log.stat().st_size if log.exists() else 0
    options = [*jobs["srun"], *of_job.only(nodes), f"--ntasks={of_job.ranks * len(nodes)}"]
    options += [f"--ntasks-per-node={of_job.ranks}", f"--output={log}", f"--time={LIMIT_MINUTES}"]
    command = f"{jobs['python']} -m resnet.tools.check_node {shlex.quote(str(run_dir))}"
    where = {"MASTER_ADDR": jobs["master"] or nodes[0], "MASTER_PORT": str(free_port(str(log)))}
    code = srun([*options, "bash", "-c", command], where)
    found = judge(_rows(log, seen), nodes, time.time() - begin, f"srun ended with code {code}{_last_line(log, seen)}")
    for line in [*(f"{node}: {why}" for node, why in found.bad.items()), *found.notes]:
        print(f"start check: {line}", file=sys.stderr, flush=True)
    return found


def _rows(log: Path, start: int) -> list[dict[str, Any]]:
    """What ranks told behind so many bytes of a log."""
    return told(_text(log, start))


def _last_line(log: Path, start: int) -> str:
    lines = [line.strip() for line in _text(log, start).splitlines() if line.strip()]
    return f": {lines[-1]}" if lines else ""


def _text(log: Path, start: int) -> str:
    if not log.exists():
        return ""
    with open(log, encoding="utf-8", errors="replace") as file:
        file.seek(start)
        return file.read()


def judge(rows: Sequence[dict[str, Any]], nodes: Sequence[str], seconds: float = 0.0, ended: str = "") -> Checked:
    """What the ranks' rows say of the nodes. seconds: that the check took. ended: how, in words."""
    alone = [row for row in rows if "bad" in row]
    joined = [row for row in rows if "clock" in row]
    blamed, silent = _no_answer(rows, nodes, seconds)
    unanswered = f"no answer within {seconds:.0f} s"
    bad = {node: unanswered for node in nodes if node in blamed} | _without_gpu(alone)
    slow, slow_is_bad = _slow(joined)
    bad |= slow if slow_is_bad else {}
    # In the place of what follows from it.
    bad |= {row["node"]: row["bad"][0] for row in reversed(alone) if row["bad"]}
    notes = [f"{node}: {unanswered}" for node in nodes if node in silent]
    if silent and not alone:
        notes = [f"{unanswered} from any node: {ended}"]
    notes += [*_of_nodes(alone), *_of_clocks(joined)]
    notes += [] if slow_is_bad else [f"{node}: {why}" for node, why in slow.items()]
    notes += list(dict.fromkeys(f"{row['node']}: {row['trouble']}" for row in rows if "trouble" in row))
    if bad and len(nodes) > 1 and len(bad) == len(nodes):
        # Then it is not the nodes: training will tell what it is.
        notes, bad = [*(f"all nodes failed the start check, {n}: {why}" for n, why in bad.items()), *notes], {}
    more = [f"... and {len(notes) - _MOST_NOTES} more such lines"] if len(notes) > _MOST_NOTES else []
    rates = [row["all_reduce_gbs"] for row in joined]
    return Checked(bad, [*notes[:_MOST_NOTES], *more], min(rates, default=None), round(seconds, 1))


def _no_answer(rows: Sequence[Mapping[str, Any]], nodes: Sequence[str], seconds: float) -> tuple[set[str], set[str]]:
    """The nodes of which a rank did not answer: those that are to blame for it, and the others.

    What begins in time, with torch imported, and hangs until the limit does so by itself. All else may lie in what
    nodes share, a program that fails or files that are slow to read: then a node is blamed where at least half of them
    have answered, well in time.
    """
    limit = 60 * LIMIT_MINUTES
    ages = {(row["node"], row["rank"]): row["after"] for row in rows if "bad" in row}
    heard = {node for node, _ in ages}
    mute = [row for row in rows if "begun" in row and (row["node"], row["rank"]) not in ages]
    silent = {*nodes} - heard | {row["node"] for row in mute}
    if ages and 2 * len(heard) >= len(nodes) and statistics.median(ages.values()) < limit / 2:
        return silent, set()
    hung = {row["node"] for row in mute if seconds >= limit and row["begun"] < limit / 2}
    return hung, silent - hung


def _without_gpu(alone: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The nodes on which a rank sees no GPU, where others do."""
    if not any(row["device"] == "cuda" for row in alone):
        return {}
    return {row["node"]: f"rank {row['rank']} sees no GPU" for row in alone if row["device"] != "cuda"}


def _slow(joined: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], bool]:
    """Nodes that are slow with whomever they exchange, and whether that is reason enough: CPUs may just be busy."""
    best: dict[str, float] = {}
    for row in joined:
        if row["pair_gbs"] is not None:
            # Of a node the slowest of its ranks, each of which may have a network card of its own.
            best[row["node"]] = min(row["pair_gbs"], best.get(row["node"], row["pair_gbs"]))
    if len(best) < 3:
        return {}, False
    median = statistics.median(best.values())
    words = {n: f"its network gives {rate:.2g} GB/s, the median is {median:.2g}" for n, rate in best.items()}
    return {n: words[n] for n, rate in best.items() if rate < SLOW * median}, joined[0]["backend"] == "nccl"


def _of_nodes(alone: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    for row in alone:
        facts, node = row["facts"], row["node"]
        for key, place in (("tmp_gb", "the folder for temporary files"), ("shm_gb", "/dev/shm")):
            if facts.get(key) is not None and facts[key] < LEAST_FREE_GB:
                notes.append(f"{node}: {facts[key]:.2g} GB free in {place}")
        notes += [f"{node} cannot read {what}" for what in facts.get("unreadable", ())]
    return notes


def _of_clocks(joined: Sequence[Mapping[str, Any]]) -> list[str]:
    if not joined:
        return []
    median = statistics.median(row["clock"] for row in joined)
    off = {row["node"]: row["clock"] - median for row in joined if abs(row["clock"] - median) > SKEW_SECONDS}
    return [f"{node}: its clock is {seconds:+.1f} s off the others'" for node, seconds in off.items()]
