"""Flip bits in one rank's weights or moments, and see whether the next checkpoint finds it and names the rank.

    python -m tests.bench.flips [--count 100] [--ranks 3] [--cost] [--recheck]

Each flip is of a random rank, tensor (weights, SGD's momentum or their average), element and bit, in a tiny net that
real ranks (gloo, forked) hold. It counts as found where `Saver.save` ends in silent data corruption of that rank and
that tensor, on all ranks, and writes nothing. Before each flip the unhurt state is saved: an alarm there is false.

--recheck: processor time of a comparison of gradients (`recheck`) as a share of a step's, in a run of two ranks.
--cost: seconds of the comparison beside those of a save of ResNet-50 with momentum and average, taking turns on one
process with one thread, the reduction between ranks left out (two numbers a tensor).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import resnet.loop
from recipes.plan import make_plan
from recipes.schema.recipe import Recipe
from resnet.checkpoint.commit import name_of
from resnet.checkpoint.saver import Saver
from resnet.main import main as main_of_training
from resnet.replicas import SilentCorruption, checksums, replicated
from tests.bench.checkpoint import build
from tests.processes import start_ranks, wait_ranks

SECONDS = 600
CPU = torch.device("cpu")


def saver_in(folder: Path, recipe: Recipe, writes: bool) -> Saver:
    facts = {"digest": "", "recipe": recipe.model_dump(mode="json")}
    return Saver(folder, make_plan(recipe, 64, 1), ["a", "b"], facts, None, writes)


@torch.no_grad()
def flip(tensor: torch.Tensor, element: int, bit: int) -> None:
    """In place; once more undoes it."""
    flat = tensor.detach().permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True)).flatten()
    assert flat.data_ptr() == tensor.data_ptr()
    flat.view(torch.int32)[element] ^= 1 << bit if bit < 31 else -(2**31)


def be_a_rank(argv: Sequence[str]) -> int:
    """Flip, save and undo, so often; rank 0 writes down what came of each flip."""
    folder, count, seed = Path(argv[0]), int(argv[1]), int(argv[2])
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    recipe, state = build(CPU, {"block": "basic", "layers": [1, 1, 1], "widths": [16, 32, 64]}, 10)
    saver, chance, outcomes = saver_in(folder, recipe, writes=rank == 0), random.Random(seed), []
    tensors = replicated(state)
    for _ in range(count):
        whom, name = chance.randrange(ranks), chance.choice(list(tensors))
        element, bit = chance.randrange(tensors[name].numel()), chance.randrange(32)
        state.step += 1
        saver.save(state, 0, wait=True)
        state.step += 1
        if rank == whom:
            flip(tensors[name], element, bit)
        told, own = "nothing", False
        try:
            saver.save(state, 0, wait=True)
        except SilentCorruption as error:
            told, own = str(error), error.own
        if rank == whom:
            flip(tensors[name], element, bit)
        committed = (folder / "checkpoints" / name_of(state.step)).exists()
        named = own == (rank == whom) and f"corruption: rank {whom} on " in told and f", in {name} of " in told
        outcomes.append({"rank": whom, "tensor": name, "bit": bit, "told": told, "found": named and not committed})
    if rank == 0:
        (folder / "outcomes.json").write_text(json.dumps(outcomes))
    dist.destroy_process_group()
    return 0


def flips(count: int, ranks: int, seed: int = 0) -> list[dict]:
    """What came of each flip. Raises RuntimeError where a rank failed, as at a false alarm."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.txt"
        codes = wait_ranks(start_ranks([folder, str(count), str(seed)], ranks, output, program=be_a_rank), SECONDS)
        if any(codes):
            raise RuntimeError(f"exit codes {codes}:\n{output.read_text()[-3000:]}")
        return json.loads((Path(folder) / "outcomes.json").read_text())


def cost(rounds: int) -> str:
    recipe, state = build(CPU)
    checksums_s, save_s = [], []
    with tempfile.TemporaryDirectory() as folder:
        saver = saver_in(Path(folder), recipe, writes=True)
        for _ in range(rounds):
            checksums_s.append(processor_seconds(lambda: checksums([*replicated(state).values()]).sum().item()))
            state.step += 1
            save_s.append(processor_seconds(lambda: saver.save(state, 0)))
            saver.wait()
    # The first has its memory to allocate.
    sums, save = (statistics.median(seconds[1:]) for seconds in (checksums_s, save_s))
    return f"ResNet-50 on one thread of a CPU: checksums {sums:.3f} s, a save's stall without them {save:.3f} s"


def be_a_timed_rank(argv: Sequence[str]) -> int | None:
    """Train; rank 0 writes down its seconds in steps, and of those in rechecks."""
    seconds = {"train_step": 0.0, "recheck": 0.0}

    def timed(name: str) -> Callable[..., Any]:
        act = getattr(resnet.loop, name)

        def counted(*given: Any) -> Any:
            begin = time.thread_time()
            try:
                return act(*given)
            finally:
                seconds[name] += time.thread_time() - begin

        return counted

    for name in seconds:
        setattr(resnet.loop, name, timed(name))
    code = main_of_training([*argv[1:]])
    if os.environ["RANK"] == "0":
        (Path(argv[0]) / "seconds.json").write_text(json.dumps(seconds))
    return code


def cost_of_recheck() -> str:
    words = [
        *("recipe=quickstart", "device=cpu", "wandb.mode=disabled", "progress=off", "model.name=resnet18", "epochs=1"),
        *("data={source: synthetic, samples: 640, classes: 4, size: 64, num_workers: 0}", "batch_size=32"),
        *("augment={train_size: 64, val_resize: 64, val_size: 64}", "recheck=1"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.txt"
        argv = [folder, *words, f"run.root={folder}"]
        if any(codes := wait_ranks(start_ranks(argv, 2, output, program=be_a_timed_rank), SECONDS)):
            raise RuntimeError(f"exit codes {codes}:\n{output.read_text()[-3000:]}")
        seconds = json.loads((Path(folder) / "seconds.json").read_text())
    share = seconds["recheck"] / (seconds["train_step"] - seconds["recheck"])
    return (
        f"ResNet-18 at 64 px, 16 images a rank: a recheck takes {share:.2f} of a step (recheck=200: {share / 2:.2f}%)"
    )


def processor_seconds(act: Callable[[], object]) -> float:
    """Of this thread: other programs on the machine disturb them less."""
    begin = time.thread_time()
    act()
    return time.thread_time() - begin


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.flips", description="flip bits, and count those found")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--cost", action="store_true", help="also time the comparison beside a save")
    parser.add_argument("--recheck", action="store_true", help="also time a comparison of gradients beside a step")
    given = parser.parse_args(arguments)
    outcomes = flips(given.count, given.ranks)
    for outcome in outcomes:
        if not outcome["found"]:
            print(f"NOT FOUND: {outcome}")
    found, moments = (sum(map(test, outcomes)) for test in (lambda o: o["found"], lambda o: " of " in o["tensor"]))
    print(
        f"{found} of {len(outcomes)} flips found and named, {moments} of them in moments and averages; no false alarm"
    )
    if given.recheck:
        print(cost_of_recheck())
    if given.cost:
        torch.set_num_threads(1)
        print(cost(6))
    return int(found < len(outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
