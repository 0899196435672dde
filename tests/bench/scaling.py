"""Images a second on several ranks: ours against plain DDP, taking turns in the same processes.

    python -m tests.bench.scaling [--ranks 1 2 4] [--nets small ...] [--rounds N] [--steps N] [--quick] [--out FILE]

The ranks are processes over gloo on this machine's cores, each bound to one of them with one thread. Each has the same
number of images a step, so that more ranks do more work. `ddp` is the shortest loop over DDP with bucket views,
`ddp_features` the same with our features, and `ddp_again` `ddp` once more: what its ratio is away from 1 is noise.
Beside images a second stands the first rank's processor time, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.bench.loop import CASES, Case
from tests.bench.loops import Loop, bare, bare_features, in_turns, resident_batches
from tests.bench.machine import facts, headline
from tests.processes import free_port

LOOPS = {"ddp": bare, "ddp_again": bare, "ddp_features": bare_features}
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scaling", description="time training on several ranks")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, help="steps of a turn (default: the net's own)")
    parser.add_argument("--nets", nargs="+", choices=CASES, default=["small", "resnet18"])
    parser.add_argument("--quick", action="store_true", help="the tiny net only, in short turns")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    given = parser.parse_args(arguments)
    found = facts()
    print(headline(found), flush=True)
    report: dict[str, Any] = {"machine": found, "nets": {}}
    for net in ["tiny"] if given.quick else given.nets:
        setting, usual = CASES[net]
        steps = given.steps or (10 if given.quick else usual)
        case = Case(dataclasses.replace(setting, log_every=min(setting.log_every, steps)), steps)
        print(
            f"\n{net}: {setting.batch_size} images of {setting.size} px a rank, {given.rounds} rounds of {steps} steps"
        )
        of_one: dict[str, float] = {}
        report["nets"][net] = [measure(case, ranks, given.rounds, of_one) for ranks in given.ranks]
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def measure(case: Case, ranks: int, rounds: int, of_one: dict[str, float]) -> dict[str, Any]:
    """Print the lines of so many ranks. of_one: images a second of each loop on one rank, filled in there."""
    cores = cores_of(ranks)
    with tempfile.TemporaryDirectory() as folder:
        result, port = Path(folder, "turns.json"), free_port()
        mp.start_processes(_rank, (ranks, cores, port, case, rounds, result), ranks, start_method="fork")
        turns: dict[str, list[tuple[float, float]]] = json.loads(result.read_text())
    number = len(set(cores))
    shared = ", which they share" if ranks > number else ""
    print(f"{ranks} rank{'s' * (ranks > 1)} on {number} core{'s' * (number > 1)}{shared}")
    images = ranks * case.setting.batch_size * case.steps
    rows = {name: summary(name, turns, images, case.steps) for name in turns}
    if ranks == 1:
        of_one.update((name, row["images_per_second"]) for name, row in rows.items())
    print_table(rows, of_one)
    return {"ranks": ranks, "cores": cores, "rows": rows}


def summary(name: str, turns: dict[str, list[tuple[float, float]]], images: int, steps: int) -> dict[str, Any]:
    """Medians over the rounds of a loop's turns (seconds, and the processor's), and of ratios within a round."""
    own = turns[name]
    seconds, processor = zip(*own, strict=True)
    row = {
        "images_per_second": images / statistics.median(seconds),
        "cpu_ms": 1000 * statistics.median(processor) / steps,
        "turns": own,
    }
    for base in ("ddp_features", "ddp"):
        pairs = list(zip(own, turns[base], strict=True))
        row[f"speed_to_{base}"] = statistics.median(other[0] / mine[0] for mine, other in pairs)
        row[f"cpu_to_{base}"] = statistics.median(mine[1] / other[1] for mine, other in pairs)
    return row


def print_table(rows: dict[str, dict[str, Any]], of_one: dict[str, float]) -> None:
    ratios = f"{'/ ddp_features':>16}{'/ ddp':>8}"
    print(f"{'':16}{'images/s':>10}{ratios}{'cpu ms/step':>13}{ratios}{'x one rank':>12}")
    for name, row in rows.items():
        rate = row["images_per_second"]
        speed = f"{rate:10.1f}{row['speed_to_ddp_features']:16.3f}{row['speed_to_ddp']:8.3f}"
        processor = f"{row['cpu_ms']:13.3f}{row['cpu_to_ddp_features']:16.3f}{row['cpu_to_ddp']:8.3f}"
        scaled = f"{rate / of_one[name]:12.2f}" if name in of_one else ""
        print(f"  {name:14}{speed}{processor}{scaled}", flush=True)


def cores_of(ranks: int) -> list[int]:
    """A core for each rank; where there are more ranks than usable cores, some share one."""
    usable = sorted(os.sched_getaffinity(0))
    return [usable[rank % len(usable)] for rank in range(ranks)]


def _rank(rank: int, ranks: int, cores: list[int], port: int, case: Case, rounds: int, result: Path) -> None:
    """One process: make all loops, take turns with the other ranks; the first one writes how long each turn took."""
    os.sched_setaffinity(0, {cores[rank]})
    torch.set_num_threads(1)
    for name in LAUNCHED:
        os.environ.pop(name, None)
    if ranks > 1:
        launched = (rank, rank, ranks, ranks, "127.0.0.1", port)
        os.environ.update({name: str(value) for name, value in zip(LAUNCHED, launched, strict=True)})
    from tests.bench.ours import Ours

    setting = dataclasses.replace(case.setting, device="cpu")
    batches = resident_batches(dataclasses.replace(setting, seed=rank))
    # First ours: it joins the process group, in which the others find themselves.
    loops: dict[str, Loop] = {"ours": Ours(setting, batches, ranks)}
    loops = {name: make(setting, batches) for name, make in LOOPS.items()} | loops
    turns = take_turns(loops, case.steps, rounds)
    for loop in loops.values():
        loop.close()
    if rank == 0:
        result.write_text(json.dumps(turns))
    if dist.is_initialized():
        dist.destroy_process_group()


def take_turns(loops: dict[str, Loop], steps: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Each turn's seconds, from when all ranks begin it to when all have ended it, and this rank's processor time.

    The first round is not kept.
    """
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    together = dist.barrier if dist.is_initialized() else contextlib.nullcontext
    for name, loop, counts in in_turns(loops, rounds):
        loop.block(max(1, steps // 10))
        together()
        start, processor = time.perf_counter(), time.process_time()
        loop.block(steps)
        used = time.process_time() - processor
        together()
        if counts:
            turns[name].append((time.perf_counter() - start, used))
    return turns


if __name__ == "__main__":
    raise SystemExit(main())
