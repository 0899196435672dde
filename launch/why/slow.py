"""What a run loses time to, by the figures of its own log: images, one rank, the network, its computing, the rest."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence

from launch.why.cause import Cause
from launch.why.facts import Facts
from launch.why.lines import Line, lately, median, share
from launch.why.mends import excluding, on_cpu, on_node, with_changes
from launch.why.overheads import overheads
from launch.why.sizes import sizes_up_to
from launch.why.speed import computing, no_gpu
from recipes.text import plural
from resnet.rundir.metrics_log import SLOW_RANKS

LEAST_LINES = 4
"""Of fewer lines of the log nothing is said: one that fell on a hiccup would be a quarter of them."""
MOST_LINES = 200
"""The last ones of the attempt: how it is now, and no more than a few hours of it."""
DATA = 0.2
"""Of the time, waiting for images: a training process that decodes for itself (num_workers=0) beside a small network
spends an eighth to a sixth on it where nothing is wrong, and below this no change wins more than a quarter."""
NETWORK = 0.2
"""Of the time, that even the rank which waits least waits for gradients: two ranks on one busy core are at 0.13."""
NAMED = 0.6
"""Of the lines, in which one rank is named as slow: by chance, on a machine that others use too, each of two ranks
was named in up to 0.4 of them."""
BESIDE_WRONG = 0.8
"""Of the share of the time that a cause costs: what makes the result wrong comes first."""
_SLOW_RANK = re.compile(r"rank (\d+) on (\S+): ([\d.]+) times the median \((\w+)\)")


def find(facts: Facts) -> list[Cause]:
    lines = lately(facts, MOST_LINES)
    found: list[Cause | None] = [no_gpu(facts), *overheads(facts)]
    if len(lines) >= LEAST_LINES:
        found += [_data(facts, lines), _rank(facts, lines), _network(facts, lines)]
        # All of these lower the images a second, of which they are the more telling.
        waits = any(cause and cause.name in ("data_wait", "slow_rank", "network", "checkpoint") for cause in found)
        found += [] if waits else computing(facts)
    return [cause._replace(weight=BESIDE_WRONG * cause.weight) for cause in found if cause]


def _data(facts: Facts, lines: Sequence[Line]) -> Cause | None:
    wait = share(lines, "data_wait")
    if wait is None or wait < DATA:
        return None
    means, command = _more_images(facts, lines)
    return Cause(
        "slow",
        "data_wait",
        f"training waits for images {wait:.0%} of the time; without that it is {_faster(wait)}",
        (f"metrics.jsonl: data_wait {wait:.2f} over {_steps(lines)}, {_rate(lines)}", *means),
        command,
        wait,
    )


def _more_images(facts: Facts, lines: Sequence[Line]) -> tuple[list[str], str]:
    """What the images come by, in words, and what would bring them sooner."""
    measure = shlex.join(["resnet", "doctor", f"recipe={facts.run_dir}"])
    if facts.recipe is None:
        return [], measure
    data, profile = facts.recipe.data, facts.job.profile if facts.job else {}
    cores = profile.get("cpus_per_rank")
    if data.num_workers == 0:
        return (
            ["recipe.yaml: data.num_workers=0, so that the training process decodes the images itself"],
            with_changes(facts, "data.num_workers=null"),
        )
    if data.num_workers is not None and cores and data.num_workers < min(cores, 16):
        return (
            [f"recipe.yaml: data.num_workers={data.num_workers}, and a rank has {cores} cores (job.json)"],
            with_changes(facts, "data.num_workers=null"),
        )
    if _comes_down(lines) and not data.stage and any(data.paths().values()):
        cold = "the wait shrinks from epoch to epoch: the file system is slow for what it has not read before"
        return [cold], with_changes(facts, f"data.stage={'$SCRATCH' if profile.get('scratch') else '/tmp'}")
    if cores and cores < 8 and not on_cpu(facts):
        return (
            [f"job.json: {cores} cores a rank, which decode for one GPU"],
            with_changes(facts, f"slurm.cpus_per_rank={2 * cores}"),
        )
    if data.num_workers is not None and not cores and data.num_workers < 4:
        return (
            [f"recipe.yaml: {plural(data.num_workers, 'worker')} a rank; null is one for each core"],
            with_changes(facts, "data.num_workers=null"),
        )
    if data.decode == "cpu" and facts.recipe.augment.crop == "random_resized" and any(data.paths().values()):
        return (
            ["recipe.yaml: data.decode=cpu, where region decodes no more than is cropped, to the same pixels"],
            with_changes(facts, "data.decode=region"),
        )
    return [f"which part of it is slow (disk, decoding, policy), this measures: {measure}"], measure


def _faster(wait: float) -> str:
    return f"{1 / (1 - min(wait, 0.99)):.1f} times as fast"


def _comes_down(lines: Sequence[Line]) -> bool:
    """Whether the last quarter waits less than half as much as the first."""
    quarter = len(lines) // 4
    if quarter < 2:
        return False
    first, last = share(lines[:quarter], "data_wait"), share(lines[-quarter:], "data_wait")
    return first is not None and last is not None and last < first / 2


def _rank(facts: Facts, lines: Sequence[Line]) -> Cause | None:
    named = [_SLOW_RANK.findall(str(line.row.get(SLOW_RANKS, ""))) for line in lines]
    ranks = Counter(int(rank) for found in named for rank, *_ in found)
    if not ranks or (times := ranks.most_common(1)[0])[1] < NAMED * len(lines):
        return None
    rank = times[0]
    mine = [found for line in named for found in line if int(found[0]) == rank]
    host = mine[-1][1]
    ratio = sorted(float(found[2]) for found in mine)[len(mine) // 2]
    by = Counter(found[3] for found in mine).most_common(1)[0][0]
    beside = sorted(other for other, count in ranks.items() if count >= NAMED * len(lines) and other != rank)
    return Cause(
        "slow",
        "slow_rank",
        f"all ranks wait for rank {rank} on {host}, which takes {ratio:.2f} times as long as the others: {_BY[by]}",
        (
            f"metrics.jsonl: slow_ranks names it in {times[1]} of the last {len(lines)} lines, by {by}"
            + (f"; rank {', '.join(map(str, beside))} as well" if beside else ""),
            f"metrics.jsonl: {_rate(lines)}, network_wait {share(lines, 'network_wait') or 0:.2f}",
        ),
        _without_node(facts, host, by),
        (1 - 1 / ratio) * times[1] / len(lines),
    )


_BY = {
    "data": "it waits for its images (the node's disk, cores or network)",
    "compute": "it computes slowly (clocks, temperature, another program on its GPU)",
    "other": "neither images nor computing (callbacks, saving, a host that is too busy)",
}
_LOOK = {
    "data": "resnet doctor recipe={run}",
    "compute": "nvidia-smi -q -d PERFORMANCE",
    "other": "top -b -n 1 | head -20",
}
"""What to type on the machine of a slow rank."""


def _without_node(facts: Facts, host: str, by: str) -> str:
    if facts.job and facts.job.nodes > 1:
        return with_changes(facts, excluding(facts, host))
    look = _LOOK["other" if by == "compute" and on_cpu(facts) else by].format(
        run=shlex.quote(str(facts.run_dir.absolute()))
    )
    return f"ssh {host} {look}" if facts.job else look


def _network(facts: Facts, lines: Sequence[Line]) -> Cause | None:
    wait = share(lines, "network_wait")
    if wait is None or wait < NETWORK:
        return None
    ratio = median(lines, "slowest_ratio")
    slowest = f"; the slowest rank takes {ratio:.2f} times the median, so that it is none of them" if ratio else ""
    return Cause(
        "slow",
        "network",
        f"the ranks wait for each other's gradients {wait:.0%} of the time, the slowest one as well: the network",
        (
            f"metrics.jsonl: network_wait {wait:.2f} over {_steps(lines)}{slowest}",
            *_how_many(facts),
        ),
        less_network(facts),
        wait,
    )


def _how_many(facts: Facts) -> Iterable[str]:
    plan, ranks = facts.provenance.get("plan") or {}, facts.provenance.get("world_size")
    if ranks and plan.get("batch_size"):
        nodes = f" on {plural(facts.job.nodes, 'node')}" if facts.job else ""
        interface = (facts.job.profile.get("interface") or "not said") if facts.job else ""
        told = f"; slurm.interface {interface}" if interface else ""
        yield f"provenance.json: {ranks} ranks{nodes}, {plan['batch_size'] // ranks} images a step each{told}"


def less_network(facts: Facts) -> str:
    """Fewer ranks, each with more images a step: the batch, and so the training, stays."""
    if facts.job is None:
        ranks = max(1, (facts.provenance.get("world_size") or 2) // 2)
        return with_changes(facts, ranks=ranks) if on_cpu(facts) else "nvidia-smi topo -m"
    smaller = [size for size in sizes_up_to(facts, facts.job.nodes) if size < facts.job.nodes]
    if not smaller:
        return on_node(facts, "nvidia-smi", "topo", "-m")
    # A job that may start on fewer nodes still may.
    least = int(str(facts.job.profile.get("nodes")).partition("-")[0])
    least = f"{least}-" if least < smaller[-1] else ""
    return with_changes(facts, f"slurm.nodes={least}{smaller[-1]}")


def _steps(lines: Sequence[Line]) -> str:
    return f"steps {lines[0].begin + 1} to {lines[-1].step}"


def _rate(lines: Sequence[Line]) -> str:
    rate = median(lines, "images_per_second")
    return f"{rate:,.0f} images/s" if rate and rate >= 10 else f"{rate or 0:.2g} images/s"
