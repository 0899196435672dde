"""Change on how many nodes a run is trained, again and again at random steps, and compare it with one left alone.

    python -m tests.bench.size_changes [--changes 20] [--seed 0] [--out sizes.json]

A Slurm of three nodes trains a run that was sent with slurm.nodes=1-3. At random steps it is sent back to the queue, by
turns of chance with `scancel --signal=USR2` or `scontrol requeue`; meanwhile somebody else's job takes so many nodes
that another number is left for it. All its steps have to be made once, of the same images in the same micro-batches as
those of an undisturbed run on three nodes, and its weights have to be the same but for the order in which gradients are
added up. For comparison: the undisturbed run once more, sent to Slurm, and on one node all along.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import resnet.run  # noqa: F401  (imported before ranks are forked)
from recipes.text import table
from resnet.checkpoint.snapshot import read_rest
from resnet.data.sources.shapes import draw
from tests.bench import gpu_time
from tests.helpers import TINY, column, furthest, same, status, weights
from tests.slurm_helpers import Cluster, running_cluster, train_here

NODES = 3
BATCH, IN_STEP = 24, 4
"""Images of a step, and of a micro-batch: 2, 3 or 6 of them on each of three, two or one nodes."""
STEPS_AN_EPOCH = 6
SHAPE = [f"batch_size={BATCH}", f"max_batch_per_device={IN_STEP}", "eval.every=1000", "checkpoint.keep=1000"]
CLUSTER = ["cluster=local-test", "slurm.time=60", "slurm.gpus_per_node=1", "slurm.exclusive=true"]
RANGE = f"slurm.nodes=1-{NODES}"
STEP_SECONDS = 0.15
"""Of three nodes; others take as much longer: so long that a step can be hit."""
STEPS_OF_AN_ATTEMPT = 3
"""The least that lie between two changes."""
WAYS = {"scancel": ("scancel", "--signal=USR2"), "requeue": ("scontrol", "requeue")}


def words_of(shapes: Path, steps: int) -> list[str]:
    """Of a run of so many steps."""
    return [*TINY, f"data.train={shapes}", *SHAPE, f"epochs={-(-steps // STEPS_AN_EPOCH)}"]


def slowly(words: Sequence[str], notes: Path) -> list[str]:
    """The same run, whose steps take their time."""
    arguments = {"seconds": STEP_SECONDS * NODES / BATCH, "batch_size": BATCH, "notes": str(notes)}
    plugin = {"path": f"{gpu_time.__file__}:GpuTime", "args": arguments}
    return [*words, f"plugins.callbacks={json.dumps([plugin])}"]


def random_steps(chance: random.Random, changes: int, steps: int) -> list[int]:
    """Ascending, with room between them, before them and behind them."""
    room = steps - STEPS_OF_AN_ATTEMPT * (changes + 1)
    drawn = sorted(chance.randint(0, room) for _ in range(changes))
    return [STEPS_OF_AN_ATTEMPT * number + step for number, step in enumerate(drawn, 1)]


def other_sizes(chance: random.Random, changes: int) -> Iterator[int]:
    """Numbers of nodes, each another than the one before; the run begins on all."""
    now = NODES
    for _ in range(changes):
        now = chance.choice([size for size in range(1, NODES + 1) if size != now])
        yield now


def block(cluster: Cluster, nodes: int) -> None:
    """Take nodes, in the place of those that were taken before."""
    cluster.ask("scancel", "--name=block", code=None)
    if nodes:
        options = ["--job-name=block", f"--nodes={nodes}", "--exclusive", "--no-requeue", "--output=/dev/null"]
        cluster.ask("sbatch", *options, "--time=60", "--wrap=sleep 3600")


def change_sizes(cluster: Cluster, name: str, words: Sequence[str], steps: Sequence[int], seed: int) -> list[str]:
    """Send a run, and have it start on another number of nodes after each of these steps; returns the ways."""
    chance, ways = random.Random(seed), []
    cluster.launch("submit", *words, *CLUSTER, RANGE, f"run.name={name}")
    job = cluster.job(name)
    for attempt, (step, size) in enumerate(zip(steps, other_sizes(chance, len(steps)), strict=True), 1):
        cluster.wait_step(name, step, attempt)
        ways.append(chance.choice([*WAYS]))
        cluster.ask(*WAYS[ways[-1]], job)
        block(cluster, NODES - size)
        cluster.wait("the next attempt", lambda done=attempt: len(cluster.attempts(name)) > done)
        print(f"{ways[-1]} at step {step}: {len(cluster.attempts(name)[-1]['nodes'])} nodes", flush=True)
    cluster.wait_end(name)
    block(cluster, 0)
    return ways


def rows(attempts: Sequence[dict[str, Any]], ways: Sequence[str]) -> list[dict[str, str]]:
    """A row an attempt."""
    return [
        {
            "attempt": str(attempt["attempt"]),
            "nodes": str(len(attempt["nodes"])),
            "from step": str(attempt["step"]),
            # Where Slurm ended the batch script before it could note the end: the last step that was seen.
            "to step": str(attempt.get("last_step", attempt.get("reached", "-"))),
            "ended by": way,
        }
        for attempt, way in zip(attempts, [*ways, "the end"], strict=False)
    ]


def verdict(run: Path, reference: Path, attempts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How a run compares with one that was left alone."""
    rests = [read_rest(folder) for folder in sorted(run.glob("checkpoints/step-*"))]
    return {
        "state": status(run)["state"],
        "changes": sum(len(now["nodes"]) != len(then["nodes"]) for then, now in pairwise(attempts)),
        "same_steps": column(run, "input_digest") == column(reference, "input_digest")
        and column(run, "step") == column(reference, "step"),
        "micro_batches": sorted({rest["micro_batch"] for rest in rests}),
        "ranks": sorted({rest["world_size"] for rest in rests}),
        "furthest": furthest(weights(run), weights(reference)),
        "largest_weight": max(
            tensor.abs().max().item() for tensor in weights(reference).values() if tensor.is_floating_point()
        ),
        "bitwise": same(weights(run), weights(reference)),
    }


def made_twice(notes: Path) -> int:
    """Steps that were made again, by what the plugin noted of each."""
    made = [line.split()[0] for line in notes.read_text().splitlines()]
    return len(made) - len({*made})


def measure(folder: Path, changes: int, seed: int) -> dict[str, Any]:
    """All runs, and what came of them."""
    draw(folder / "shapes", per_class=16, size=40)
    steps = STEPS_AN_EPOCH * (STEPS_OF_AN_ATTEMPT * (changes + 1) * 2 // STEPS_AN_EPOCH)
    words = words_of(folder / "shapes", steps)
    chosen = random_steps(random.Random(seed), changes, steps)
    (folder / "here").mkdir()
    (folder / "work").mkdir()
    with running_cluster(folder / "cluster", folder / "work", NODES, accounting=False) as cluster:
        ways = change_sizes(cluster, "changed", slowly(words, folder / "notes"), chosen, seed)
        attempts = cluster.attempts("changed")
        cluster.launch("submit", *words, *CLUSTER, f"slurm.nodes={NODES}", "run.name=control")
        cluster.wait_end("control")
        print("trained undisturbed, on Slurm", flush=True)
        reference = train_here(words, folder / "here" / "undisturbed", NODES)
        on_one = train_here(words, folder / "here" / "on-one", 1)
        return {
            "steps": steps,
            "attempts": rows(attempts, ways),
            "made twice": made_twice(folder / "notes"),
            "changed": verdict(cluster.run_dir("changed"), reference, attempts),
            "control": verdict(cluster.run_dir("control"), reference, cluster.attempts("control")),
            "on one node": furthest(weights(on_one), weights(reference)),
        }


def report(found: dict[str, Any]) -> list[str]:
    changed, control = found["changed"], found["control"]
    return [
        *table({key: [row[key] for row in found["attempts"]] for key in found["attempts"][0]}, None),
        f"{changed['changes']} changes of size in {found['steps']} steps, {found['made twice']} steps made twice, "
        f"{changed['state']}",
        f"the same images at each step: {changed['same_steps']}; micro-batch: {changed['micro_batches']}; "
        f"ranks: {changed['ranks']}",
        f"largest difference of a weight: {changed['furthest']:.1e} (the largest is {changed['largest_weight']:.1f})",
        f"on one node all along: {found['on one node']:.1e}",
        f"undisturbed once more, on Slurm: {'bitwise the same' if control['bitwise'] else control['furthest']}",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="sizes-") as folder:
        found = measure(Path(folder), arguments.changes, arguments.seed)
    print("\n".join(report(found)))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1))
    changed = found["changed"]
    right = changed["same_steps"] and changed["micro_batches"] == [IN_STEP] and changed["changes"] == arguments.changes
    return int(not (right and found["control"]["bitwise"]))


if __name__ == "__main__":
    sys.exit(main())
