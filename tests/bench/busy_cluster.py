"""A malleable run beside a fixed one, each on a Slurm of three nodes that other people's jobs keep busy.

    python -m tests.bench.busy_cluster [--seed 0] [--epochs 40] [--minutes 60] [--quick] [--out busy.json]

Two clusters side by side get the same seeded stream of jobs at the same times: sleepers of one to three whole nodes, a
backlog and then arrivals that by themselves would use 95% of the nodes. Time is compressed 15 times: the others' jobs
take 1 to 20 minutes, which stand for 15 minutes to 5 hours, short ones as often as long ones (log-uniform), and their
limits are what their users ask for: jobs use 10 to 95% of it, as evenly as Mu'alem and Feitelson found (IEEE TPDS
12(6), 2001). Once the backlog has spread, each cluster gets the same training, of 2 minutes on all nodes (half an
hour): one as `slurm.nodes=3 slurm.time=N`, with what it needs, the other as `slurm.nodes=1-3 slurm.time=auto --grow`.
All nodes share this machine's processor, so a GPU's time is stood for: a plugin (tests/bench/gpu_time.py) makes each
step of a rank last in proportion to its images.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

import resnet.run  # noqa: F401  (imported before ranks are forked)
from resnet.data.sources.shapes import draw
from tests.bench import gpu_time
from tests.helpers import TINY, furthest, status, weights
from tests.slurm_helpers import Cluster, running_cluster, train_here

NODES = 3
BATCH, IN_STEP = 48, 8
"""Images of a step, and of a micro-batch: 2, 3 or 6 of them on each of three, two or one nodes."""
SHAPE = [f"batch_size={BATCH}", f"max_batch_per_device={IN_STEP}", "eval.every=1000", "log_every=10"]
CLUSTER = ["cluster=local-test", "slurm.gpus_per_node=1", "slurm.exclusive=true"]
FIXED = [f"slurm.nodes={NODES}"]
MALLEABLE = [f"slurm.nodes=1-{NODES}", "slurm.time=auto", "--grow=2"]
COMPRESSED = """\
try:
    from slurm import slices
    slices.UNKNOWN_MINUTES, slices.SHARE, slices.LEAD_SECONDS = 2, 0.2, 4
except ImportError:
    pass
"""
"""Two minutes are here what half an hour is elsewhere, but a start takes its 15 to 30 seconds: the shortest slice that
slurm.time=auto asks for, and the share of it that may go to starting and saving, are put in their place. So is the
least time to save in: the minute that it is elsewhere would be half of such a slice."""
STEPS, START_SECONDS = 3, 60
"""Steps of an epoch; and what starting and saving may take."""
USED = (0.1, 0.95)
"""Of their limits, by the others' jobs."""
LONGEST_LIMIT = 96
"""Minutes that others may ask for: a day."""
LOAD = 0.95
"""Of the nodes' time, what the jobs that arrive would take."""
SIZES = {1: 0.55, 2: 0.25, 3: 0.2}
"""Nodes of other people's jobs, and how many of them have so many."""


@dataclass(frozen=True)
class Setting:
    """How long all takes."""

    epochs: int
    step_seconds: float
    """On three nodes."""
    shortest: float
    longest: float
    """Minutes of the others' jobs."""
    backlog: float
    """Minutes of all nodes that wait when the run is sent."""
    spread_seconds: float
    """From the first of the others' jobs to the run."""

    @property
    def limit(self) -> int:
        """Minutes that the fixed run asks for."""
        return _limit(1.25 * STEPS * self.epochs * self.step_seconds + START_SECONDS)


FULL = Setting(epochs=40, step_seconds=1.0, shortest=1, longest=20, backlog=15, spread_seconds=90)
QUICK = Setting(epochs=10, step_seconds=0.5, shortest=0.1, longest=0.5, backlog=0.5, spread_seconds=5)


@dataclass(frozen=True)
class Other:
    """A job of somebody else's."""

    arrival: float
    """Seconds after the first."""
    nodes: int
    seconds: float
    limit: int
    """Minutes that its user asked for."""


def stream(seed: int, setting: Setting, minutes: float) -> list[Other]:
    """Other people's jobs: a backlog at the start, then one after the other."""
    chance, jobs, waiting, now = random.Random(seed), [], 0.0, 0.0
    while now < 60 * minutes:
        nodes = chance.choices([*SIZES], [*SIZES.values()])[0]
        seconds = 60 * setting.shortest * (setting.longest / setting.shortest) ** chance.random()
        jobs.append(Other(now, nodes, seconds, min(LONGEST_LIMIT, _limit(seconds / chance.uniform(*USED)))))
        work = nodes * seconds / NODES
        if waiting < 60 * setting.backlog + setting.spread_seconds:
            waiting += work
        else:
            now += chance.uniform(0.5, 1.5) * work / LOAD
    return jobs


def _limit(seconds: float) -> int:
    """Whole minutes, as Slurm's are."""
    return max(1, -int(-seconds // 60))


class Side:
    """One of the clusters, with its run."""

    def __init__(self, name: str, cluster: Cluster, others: Sequence[Other]) -> None:
        self.name, self.cluster, self._others = name, cluster, others
        self.log, self.notes = cluster.work / "others.txt", cluster.work / "steps.txt"
        self.sent = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send_others, daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def _send_others(self) -> None:
        begin = time.monotonic()
        for other in self._others:
            if self._over.wait(max(0.0, begin + other.arrival - time.monotonic())):
                return
            # Its start is written at once, its end where it comes to it.
            script = f"echo {other.nodes} start $(date +%s.%N) >> {self.log}; sleep {other.seconds:.1f}; " + (
                f"echo {other.nodes} end $(date +%s.%N) >> {self.log}"
            )
            options = [f"--nodes={other.nodes}", "--exclusive", f"--time={other.limit}", "--output=/dev/null"]
            self.cluster.ask("sbatch", *options, "--no-requeue", "--job-name=other", f"--wrap={script}", code=None)

    def send(self, words: Sequence[str], where: Sequence[str]) -> None:
        self.sent = time.time()
        print(self.cluster.launch("submit", *words, *CLUSTER, *where, f"run.name={self.name}").stdout, flush=True)

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    @property
    def state(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            return str(status(self.cluster.run_dir(self.name)).get("state"))
        return "unknown"

    @property
    def is_over(self) -> bool:
        """Whether the run has ended and its batch script has noted when, which is a little later."""
        newest = self.cluster.attempts(self.name)[-1:]
        return self.state in ("finished", "failed") and all("end" in attempt for attempt in newest)

    def used(self, start: float, end: float) -> float:
        """Share of the nodes' time that the others' jobs had."""
        rows = [line.split() for line in self.log.read_text().splitlines()]
        area = sum(
            int(nodes) * (end - min(max(float(when), start), end)) * (1 if what == "start" else -1)
            for nodes, what, when in rows
        )
        return area / (NODES * (end - start))


def figures(side: Side, undisturbed: Callable[[int], dict[str, torch.Tensor]]) -> dict[str, Any]:
    """What became of a run. Times in seconds after it was sent.

    undisturbed: the weights of a run that is left alone, on so many nodes.
    """
    run = side.cluster.run_dir(side.name)
    notes = [line.split() for line in side.notes.read_text().splitlines()] if side.notes.exists() else []
    made = [int(step) for step, *_ in notes]
    attempts = [attempt for attempt in side.cluster.attempts(side.name) if "end" in attempt]
    finished = side.state == "finished"
    end = attempts[-1]["end"] if attempts and finished else time.time()
    sizes = [len(attempt["nodes"]) for attempt in attempts]
    # On one number of nodes all along it has to be the same to the last bit.
    compared = sizes[0] if len({*sizes}) == 1 else NODES
    return {
        "state": side.state,
        "wait": float(notes[0][1]) - side.sent if notes else None,
        "end": end - side.sent if finished else None,
        "sizes": sizes,
        "minutes": [round((attempt["end"] - attempt["start"]) / 60, 1) for attempt in attempts],
        "causes": [attempt["cause"] or attempt["outcome"] for attempt in attempts],
        "steps": len(set(made)),
        "lost": (len(made) - len(set(made))) / max(1, len(set(made))),
        "node_hours": sum(len(attempt["nodes"]) * (attempt["end"] - attempt["start"]) for attempt in attempts) / 3600,
        "others": side.used(side.sent, end),
        "compared": compared,
        "furthest": furthest(weights(run), undisturbed(compared)) if finished else None,
    }


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line a run."""
    head = "weights beside undisturbed"
    lines = [f"{'':10} {'first step':>10} {'end':>8} {'lost':>6} {'node-h':>7} {'others':>7}  {head}  nodes"]
    for name, row in rows.items():
        where = " ".join(f"{size}({spent:g}m)" for size, spent in zip(row["sizes"], row["minutes"], strict=True))
        far = "-" if row["furthest"] is None else f"{row['furthest']:.1e}" if row["furthest"] else "bitwise"
        far += f", on {row['compared']}"
        lines.append(
            f"{name:10} {_minutes(row['wait']):>10} {_minutes(row['end']):>8} {row['lost']:6.1%} "
            f"{row['node_hours']:7.3f} {row['others']:7.0%}  {far:{len(head)}}  {where}"
        )
    fixed, malleable = rows["fixed"], rows["malleable"]
    ratios = [
        f"{fixed[key] / malleable[key]:.1f} times {word}" if fixed[key] and malleable[key] else f"{word}: not known"
        for key, word in (("wait", "shorter wait"), ("end", "sooner end"))
    ]
    return [*lines, f"malleable: {', '.join(ratios)}"]


def _minutes(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds / 60:.1f} min"


@contextlib.contextmanager
def clusters(folder: Path, others: Sequence[Other]) -> Iterator[list[Side]]:
    with contextlib.ExitStack() as stack:
        sides = []
        for name in ("fixed", "malleable"):
            (folder / name).mkdir()
            running = running_cluster(folder / f"cluster-{name}", folder / name, nodes=NODES, accounting=False)
            sides.append(Side(name, stack.enter_context(running), others))
        yield sides


def compare(folder: Path, seed: int, minutes: float, setting: Setting, malleable: Sequence[str]) -> dict[str, Any]:
    """Send both runs into clusters that are busy with the same jobs, and see them end, or stop looking."""
    others = stream(seed, setting, minutes + setting.spread_seconds / 60)
    draw(folder / "shapes", per_class=16, size=40)
    words = [*TINY, f"data.train={folder / 'shapes'}", *SHAPE, f"epochs={setting.epochs}"]

    @cache
    def undisturbed(nodes: int) -> dict[str, torch.Tensor]:
        return weights(train_here(words, folder / f"undisturbed-{nodes}", nodes))

    print(f"seed {seed}: {len(others)} jobs of others", flush=True)
    with clusters(folder, others) as sides:
        (folder / "compressed").mkdir()
        (folder / "compressed" / "sitecustomize.py").write_text(COMPRESSED)
        for side in sides:
            side.cluster.environment["PYTHONPATH"] += f":{folder / 'compressed'}"
            side.begin()
        time.sleep(setting.spread_seconds)
        for side, where in zip(sides, ([*FIXED, f"slurm.time={setting.limit}"], malleable), strict=True):
            arguments = {"seconds": setting.step_seconds * NODES / BATCH, "batch_size": BATCH, "notes": str(side.notes)}
            plugin = {"path": f"{gpu_time.__file__}:GpuTime", "args": arguments}
            side.send([*words, f"plugins.callbacks={json.dumps([plugin])}"], where)
        deadline = time.monotonic() + 60 * minutes
        while time.monotonic() < deadline and not all(side.is_over for side in sides):
            time.sleep(2)
        for side in sides:
            side.end()
        return {side.name: figures(side, undisturbed) for side in sides}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="after which the runs are not waited for any more")
    parser.add_argument("--epochs", type=int, help=f"of the run, {STEPS} steps each ({FULL.epochs})")
    parser.add_argument("--quick", action="store_true", help="everything a tenth as long, to see that it works")
    parser.add_argument("--malleable", nargs="+", default=MALLEABLE, metavar="WORD", help=f"({' '.join(MALLEABLE)})")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    setting = QUICK if arguments.quick else FULL
    setting = replace(setting, epochs=arguments.epochs or setting.epochs)
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(Path(folder), arguments.seed, arguments.minutes, setting, arguments.malleable)
    print("\n".join(table(rows)))
    if arguments.out:
        told = {"seed": arguments.seed, "setting": asdict(setting), "malleable": arguments.malleable, "runs": rows}
        arguments.out.write_text(json.dumps(told, indent=1))
    return int(any(row["state"] != "finished" for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
