"""Kill ranks, nodes, the controller and batch scripts of runs on a real Slurm at random, and compare how they end.

    python -m tests.bench.cluster_kills --kills 100 [--accounting] [--seed 0] [--out kills.json]

A cluster of three nodes trains the same run on two of them, with one to spare, again and again; every run has to end
with the weights, the metrics and the steps of one that nobody disturbed, and by one attempt alone. (To rounding, where
two nodes failed and it went on on one.) A kill that follows two without a new checkpoint waits for one: a third attempt
in a row without progress ends a run, as it should. Where a job ends without its run, `launch retry` sends it again, as
a user would.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import resnet.run  # noqa: F401  (imported before ranks are forked)
from resnet.data.sources.shapes import draw
from resnet.rundir.attempts import newest_step
from slurm import testcluster
from tests.helpers import TINY, column, metrics, same, status, weights
from tests.slurm_helpers import ON_CLUSTER, Cluster, running_cluster, train_here

STEPS = 400
SHAPE = ["epochs=40", "eval.every=40", "checkpoint.every=10 steps"]
WHERE = [*ON_CLUSTER[:1], "slurm.time=60", "slurm.nodes=2", "slurm.gpus_per_node=1", "slurm.spare_nodes=1"]
MOST_PAUSE = 20.0
"""Seconds from one kill to the next."""
DOWN = 5.0
"""Seconds for which what was killed of Slurm's own is gone."""
PATIENCE = 600.0
UNSAVED = 15.0
"""Seconds after a job's start in which slurmctld, killed, could forget that it has started: it saves its state later,
and holds a job that it finds running against its memory ("launch failed requeued held"): an administrator's to mend."""
KINDS = {"rank": 5, "node": 2, "controller": 1, "batch": 1}
"""What is killed, with its weight in the draw."""


def processes_of(cluster: Cluster) -> dict[int, tuple[str, dict[str, str]]]:
    """Command line and environment by process id, of what belongs to the cluster's daemons and jobs."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pairs = (word.partition("=") for word in (place / "environ").read_text(errors="replace").split("\0"))
            variables = {name: value for name, _, value in pairs}
            line = (place / "cmdline").read_text(errors="replace").replace("\0", " ")
            if str(cluster.folder) in (variables.get(testcluster.MARK), variables.get("SLURM_CONF", "")[:-11]):
                found[int(place.name)] = line, variables
    found.pop(os.getpid(), None)
    return found


def kill(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def kill_rank(cluster: Cluster, run: Path, chance: random.Random) -> str | None:
    found = processes_of(cluster).items()
    ranks = [pid for pid, (line, variables) in found if is_rank(line) and "SLURM_PROCID" in variables]
    return f"rank process {pid}" if ranks and kill(pid := chance.choice(sorted(ranks))) else None


def is_rank(line: str) -> bool:
    """Of a process by its command line; those of srun and the batch script hold it, too."""
    return "submitit" in line and "slurm.batch" not in line and not line.startswith("srun ")


def kill_node(cluster: Cluster, run: Path, chance: random.Random) -> str | None:
    """A node that loses its power: its slurmd, the steps' daemons and the tasks are gone before any can tell."""
    node, found = f"127.0.0.{chance.randint(1, 3)}", processes_of(cluster)
    tasks = [pid for pid, (_, variables) in found.items() if variables.get("SLURMD_NODENAME") == node]
    parents = {parent for pid in tasks if found.get(parent := parent_of(pid), ("",))[0].startswith("slurmstepd")}
    daemons = [pid for pid, (line, _) in found.items() if line.startswith("slurmd ") and f"-N {node} " in f"{line} "]
    gone = [kill(pid) for pid in (*daemons, *parents, *tasks)]
    _again(lambda: testcluster.start_daemon(cluster.folder, "slurmd", node))
    return f"node {node} ({sum(gone)} processes)"


def parent_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def kill_controller(cluster: Cluster, run: Path, chance: random.Random) -> str | None:
    attempts = cluster.attempts(run.name)
    if not attempts or time.time() - attempts[-1]["start"] < UNSAVED:
        return None
    for pid, (line, _) in processes_of(cluster).items():
        if line.startswith("slurmctld"):
            kill(pid)
    _again(lambda: testcluster.start_daemon(cluster.folder, "slurmctld"))
    return "controller"


def kill_batch(cluster: Cluster, run: Path, chance: random.Random) -> str | None:
    found = [pid for pid, (line, _) in processes_of(cluster).items() if "slurm.batch" in line and " srun " not in line]
    return f"batch script {pid}" if found and kill(pid := found[0]) else None


def _again(begin: Callable[[], None]) -> None:
    time.sleep(DOWN)
    begin()


KILLERS = {"rank": kill_rank, "node": kill_node, "controller": kill_controller, "batch": kill_batch}


def torment(cluster: Cluster, name: str, count: int, chance: random.Random) -> list[dict]:
    """Kill what belongs to a run until it is over or so many kills are done; returns what was done and when."""
    run, log, fruitless, last_step = cluster.run_dir(name), [], 0, 0
    while len(log) < count:
        pause = time.monotonic() + chance.uniform(0, MOST_PAUSE)
        while time.monotonic() < pause or (fruitless >= 2 and newest_step(run) <= last_step):
            if over(cluster, name):
                return log
            time.sleep(0.2)
        kind = chance.choices([*KINDS], [*KINDS.values()])[0]
        now = newest_step(run)
        fruitless = fruitless + 1 if now <= last_step else 1
        last_step = now
        if what := KILLERS[kind](cluster, run, chance):
            log.append({"kind": kind, "what": what, "step": now, "time": time.time()})
            print(f"  {name}: killed {what} after checkpoint {now}", flush=True)
    return log


def row(cluster: Cluster, name: str) -> dict:
    return json.loads(cluster.launch("status", name, "--json").stdout)[0]


def over(cluster: Cluster, name: str) -> bool:
    """Whether the run has ended. One whose job has ended without it is sent again."""
    now = status(cluster.run_dir(name))
    if now.get("state") == "finished":
        return True
    queue = cluster.ask("squeue", "-h", "-o", "%i", code=None)
    if queue.returncode or cluster.job(name) in queue.stdout.split():
        return False
    told = row(cluster, name)
    if told["over"] and told["state"] != "finished":
        print(f"  {name}: {told['state']} ({told['reason']}): launch retry", flush=True)
        cluster.retried += 1
        cluster.launch("retry", name, code=None)
    return told["state"] == "finished"


def compare(cluster: Cluster, name: str, reference: Path) -> list[str]:
    """What is not as it should be of a run that has ended."""
    run, wrong = cluster.run_dir(name), []
    if [line["step"] for line in metrics(run, "train/loss")] != list(range(1, STEPS + 1)):
        wrong.append("steps are missing or twice in metrics.jsonl")
    for key in ("train/loss", "train/top1", "val/loss"):
        if column(run, key) != column(reference, key):
            wrong.append(f"{key} differs")
    attempts, found, wanted = cluster.attempts(name), weights(run), weights(reference)
    if on_fewer(attempts):
        # BatchNorm's statistics of one rank are averaged in another order than those of two.
        close = all(torch.allclose(found[key], value, rtol=1e-5, atol=1e-6) for key, value in wanted.items())
    else:
        close = same(found, wanted)
    if not close:
        wrong.append("final weights differ")
    if sum(attempt.get("outcome") == "finished" for attempt in attempts) > 1:
        wrong.append("finished twice")
    return wrong


def on_fewer(attempts: list[dict]) -> bool:
    """Whether two nodes failed of three, so that the run went on on one."""
    return any(len(attempt["nodes"]) < 2 for attempt in attempts)


def one_run(cluster: Cluster, name: str, words: list[str], kills: int, chance: random.Random, reference: Path) -> dict:
    """Send a run, kill what belongs to it, and see it end; returns what became of it."""
    cluster.retried = 0
    cluster.launch("submit", *words, *WHERE, f"run.name={name}")
    log = torment(cluster, name, kills, chance)
    cluster.wait(f"{name} ends", lambda: over(cluster, name), PATIENCE)
    cluster.wait("the queue is empty", lambda: not cluster.queue(), PATIENCE)
    attempts = cluster.attempts(name)
    # An attempt of the same job and the same number of Slurm's restarts as the one before is one in place.
    starts = [(attempt["job_id"], attempt["restart"]) for attempt in attempts]
    jobs = {job for job, _ in starts}
    counts = {"in_place": len(starts) - len({*starts}), "requeues": len({*starts}) - len(jobs)}
    counts |= {"retries": cluster.retried, "on_fewer": on_fewer(attempts)}
    return {"name": name, "kills": log, **counts, "wrong": compare(cluster, name, reference)}


def describe(found: dict) -> str:
    equal = "equal to the undisturbed run" + (" but for rounding: it went on on one node" * found["on_fewer"])
    return (
        f"{found['name']}: {len(found['kills'])} kills, {found['in_place']} restarts in place, {found['requeues']} "
        f"requeues, {found['retries']} retries; {'; '.join(found['wrong']) or equal}"
    )


def summary(runs: list[dict]) -> str:
    kinds = collections.Counter(kill["kind"] for run in runs for kill in run["kills"])
    total = {key: sum(run[key] for run in runs) for key in ("in_place", "requeues", "retries", "on_fewer")}
    equal = sum(not run["wrong"] for run in runs)
    by_kind = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    return (
        f"{kinds.total()} kills ({by_kind}) of {len(runs)} runs: {total['in_place']} restarts in place, "
        f"{total['requeues']} requeues, {total['retries']} by launch retry; "
        f"{equal} of {len(runs)} runs equal to the undisturbed one ({total['on_fewer']} of them but for rounding)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--per-run", type=int, default=6, help="most kills of one run")
    parser.add_argument("--accounting", action="store_true", help="with slurmdbd")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    chance, runs, left = random.Random(arguments.seed), [], arguments.kills
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        draw(folder / "shapes", per_class=16, size=40)
        words = [*TINY, f"data.train={folder / 'shapes'}", *SHAPE]
        reference = train_here(words, folder / "reference", 2)
        with running_cluster(folder / "cluster", folder, nodes=3, accounting=arguments.accounting) as cluster:
            while left > 0:
                found = one_run(cluster, f"run-{len(runs)}", words, min(arguments.per_run, left), chance, reference)
                runs.append(found)
                left -= len(found["kills"])
                print(describe(found), flush=True)
                if arguments.out:
                    arguments.out.write_text(json.dumps(runs, indent=1))
    print(summary(runs))
    sys.exit(any(run["wrong"] for run in runs))


if __name__ == "__main__":
    main()
