"""How long a run on a real Slurm stands still when one of its ranks is killed.

    python -m tests.bench.restarts [--kills 20] [--ranks 2] [--seed 0] [--rank-logs all|first]

On a test cluster of three nodes a small run is trained by so many ranks on two of them. A random rank is killed, and
again once the run has saved a checkpoint since. Of each kill: seconds until the batch script had ended the attempt,
until the ranks were started again, until they had joined, and until the next step. All ranks share this machine's
cores, so that they import and build in turn where a cluster's do it at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import statistics
import tempfile
import time
from pathlib import Path

from resnet.data.sources.shapes import draw
from resnet.process.environment import ATTEMPT
from resnet.rundir.attempts import newest_step
from resnet.rundir.stages import AT_START, read_stages
from tests.helpers import TINY, metrics
from tests.slurm_helpers import ON_CLUSTER, Cluster, running_cluster

PARTS = ("ended", "started", "joined", "step")


def kill_one(cluster: Cluster, ranks: int, draw_from: random.Random) -> float:
    """Kill a rank of the run that trains; returns the unix time."""
    conf, pids = f"SLURM_CONF={cluster.folder}/slurm.conf".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            told = (process / "environ").read_bytes().split(b"\0")
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            is_started = Path(f"/proc/{parent}/comm").read_text().startswith("slurmstepd")
            if is_started and conf in told and any(word.startswith(f"{ATTEMPT}=".encode()) for word in told):
                pids.append(int(process.name))
    assert len(pids) == ranks, pids
    os.kill(draw_from.choice(sorted(pids)), signal.SIGKILL)
    return time.time()


def seconds_of(cluster: Cluster, name: str, attempt: int, killed: float) -> dict[str, float]:
    """From a kill on, once the attempt after it has made a step."""
    run = cluster.run_dir(name)

    def steps() -> list[float]:
        return [row["time"] for row in metrics(run, "train/loss") if row["time"] > killed]

    cluster.wait_step(name, newest_step(run) + 1, attempt + 1)
    cluster.wait("a step", steps)
    before, after = cluster.attempts(name)[attempt - 1 : attempt + 1]
    assert (before["job_id"], before["restart"]) == (after["job_id"], after["restart"])
    told = read_stages(run, attempt + 1)
    stages, until_joined = told["seconds"], AT_START[: AT_START.index("join") + 1]
    joined = told["started"] + sum(stages.get(stage, 0.0) for stage in until_joined)
    ends = {"ended": before["end"], "started": after["start"], "joined": joined, "step": steps()[0]}
    return {part: end - killed for part, end in ends.items()} | {f"of {stage}": took for stage, took in stages.items()}


def wait_for_progress(cluster: Cluster, name: str, attempt: int) -> None:
    cluster.wait("the attempt", lambda: len(cluster.attempts(name)) == attempt)
    start = cluster.attempts(name)[-1]["step"]
    cluster.wait_step(name, start + 2, attempt)
    cluster.wait("a checkpoint", lambda: newest_step(cluster.run_dir(name)) > start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2, help="an even number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank-logs", choices=("all", "first"), default="first", help="slurm.rank_logs")
    arguments = parser.parse_args()
    draw_from, rows = random.Random(arguments.seed), []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        draw(folder / "shapes", per_class=16, size=40)
        words = [*TINY, f"data.train={folder / 'shapes'}", "epochs=4000", "eval.every=4000", "log_every=1"]
        where = ["slurm.time=120", "slurm.nodes=2", "slurm.gpus_per_node=0"]
        where += [f"slurm.ranks_per_node={arguments.ranks // 2}", f"slurm.rank_logs={arguments.rank_logs}"]
        with running_cluster(folder / "cluster", folder, nodes=3, accounting=False) as cluster:
            cluster.launch(
                "submit",
                *words,
                "checkpoint.every=5 steps",
                ON_CLUSTER[0],
                *where,
                "run.name=killed",
                "slurm.max_requeues=9999",
            )
            for attempt in range(1, arguments.kills + 1):
                wait_for_progress(cluster, "killed", attempt)
                killed = kill_one(cluster, arguments.ranks, draw_from)
                rows.append(seconds_of(cluster, "killed", attempt, killed))
                print("  ".join(f"{part} {rows[-1][part]:.1f}" for part in PARTS), flush=True)
            cluster.launch("cancel", "killed", "--now", code=None)
    of = f"{len(rows)} kills, {arguments.ranks} ranks, rank_logs={arguments.rank_logs}, {os.cpu_count()} CPUs"
    print(f"\n{of}: seconds from the kill\n")
    print("| until | median | 90% | 99% | most |\n|---|---|---|---|---|")
    for part in PARTS:
        print_row(part, [row[part] for row in rows])
    print("\nOf the start, by rank 0's own word:\n\n| stage | median | 90% | 99% | most |\n|---|---|---|---|---|")
    for stage in AT_START:
        print_row(stage, [row.get(f"of {stage}", 0.0) for row in rows])


def print_row(name: str, values: list[float]) -> None:
    ordered = sorted(values)
    high, highest = (ordered[min(len(ordered) - 1, round(share * len(ordered)))] for share in (0.9, 0.99))
    print(f"| {name} | {statistics.median(ordered):.1f} | {high:.1f} | {highest:.1f} | {ordered[-1]:.1f} |")


if __name__ == "__main__":
    main()
