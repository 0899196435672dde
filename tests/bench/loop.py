"""How much a training loop adds to the arithmetic: ours, a bare one and those of others, taking turns in one process.

    python -m tests.bench.loop [--rounds N] [--steps N] [--nets tiny ...] [--only ours bare ...] [--quick] [--out FILE]

On one core and one thread, in shuffled order in each round; what is read is the process's own time (all its threads),
so that other programs on the machine disturb little. `bare_again` is `bare` once more: what its ratio to `bare` is
away from 1 is noise. Then each loop's dispatched operations, readings by the host and looked-up files are counted.
--profile tells instead where the host's time of our step goes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.bench.counting import READ_BY_HOST, look_ups_per_step, ops_per_step
from tests.bench.host_time import host_time
from tests.bench.loops import LOOPS, Loop, Setting, TinyNet, in_turns, installed, make_loop
from tests.bench.machine import facts, headline


class Case(NamedTuple):
    setting: Setting
    steps: int
    """Of a turn; a multiple of the setting's log_every."""


CASES = {
    "tiny": Case(Setting(TinyNet, batch_size=4, size=8), 100),
    "small": Case(Setting({"block": "basic", "layers": [1, 1, 1]}, batch_size=8, size=16), 50),
    "resnet18": Case(Setting({"name": "resnet18"}, batch_size=8, size=64, log_every=5), 5),
    "resnet50": Case(Setting({"name": "resnet50"}, batch_size=8, size=64, log_every=3), 3),
}
"""About 2, 12, 150 and 350 ms a step on a core of a server."""
BASES = ("bare_features", "bare")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.loop", description="time training loops")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, help="steps of a turn (default: the net's own)")
    parser.add_argument("--nets", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--only", nargs="+", choices=LOOPS, default=list(LOOPS), metavar="LOOP", help="of these loops")
    parser.add_argument("--quick", action="store_true", help="the tiny net only, in short turns")
    parser.add_argument("--precision", choices=["no", "bf16"], default="no")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true", help="where the host's time of our step goes, tiny net")
    parser.add_argument("--seed", type=int, default=0, help="of the order of turns")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    given = parser.parse_args(arguments)
    pin_to_one_core()
    found = facts()
    print(headline(found), flush=True)
    report: dict[str, Any] = {"machine": found}
    if given.profile:
        report["host_time_us"] = profile(CASES["tiny"].setting, 50 if given.quick else 1000)
    else:
        names, report["left_out"] = installed(given.only)
        for why in report["left_out"].values():
            print(f"left out: {why}")
        report["nets"] = {}
        for net, case in _cases(given).items():
            report["nets"][net] = measure(net, case, names, given.rounds, given.seed)
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def pin_to_one_core() -> None:
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _cases(given: argparse.Namespace) -> dict[str, Case]:
    nets = ["tiny"] if given.quick else given.nets
    steps = given.steps or (10 if given.quick else None)
    cases = {}
    for net in nets:
        setting, usual = CASES[net]
        of_turn = steps or usual
        changed = {"log_every": min(setting.log_every, of_turn), "compile": given.compile, "precision": given.precision}
        cases[net] = Case(dataclasses.replace(setting, **changed), of_turn)
    return cases


def measure(net: str, case: Case, names: Sequence[str], rounds: int, seed: int = 0) -> dict[str, Any]:
    """Print a table of the loops over one net; returns what is in it, with the seconds of every turn."""
    setting, steps = case
    loops = {name: make_loop(name, setting) for name in names}
    try:
        seconds = take_turns(loops, steps, rounds, seed)
        counts = {name: count(loop, setting.log_every) for name, loop in loops.items()}
    finally:
        for loop in loops.values():
            loop.close()
    shape = f"{setting.batch_size} images of {setting.size} px"
    print(f"\n{net}: {shape}, precision {setting.precision}, {rounds} rounds of {steps} steps, {setting.device}")
    rows = {name: {**summary(name, seconds), **counts[name], "seconds": seconds[name]} for name in names}
    print_table(rows)
    return {"batch_size": setting.batch_size, "size": setting.size, "steps": steps, "rounds": rounds, "rows": rows}


def take_turns(loops: dict[str, Loop], steps: int, rounds: int, seed: int) -> dict[str, list[float]]:
    """Seconds of processor time a step, of each loop in each round; the first round warms up and is not kept."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for name, loop, counts in in_turns(loops, rounds, seed):
        loop.block(max(1, steps // 10))
        marks: list[float] = []
        loop.block(steps, lambda marks=marks: marks.append(time.process_time()))
        if counts:
            seconds[name].append((marks[1] - marks[0]) / steps)
    return seconds


def summary(name: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians over the rounds: milliseconds a step, and ratios of two loops of the same round, with their quartiles."""
    row: dict[str, Any] = {"ms": 1000 * statistics.median(seconds[name]), "least_ms": 1000 * min(seconds[name])}
    for base in BASES:
        if base in seconds:
            ratios = [own / other for own, other in zip(seconds[name], seconds[base], strict=True)]
            row[f"to_{base}"] = statistics.median(ratios)
            row[f"to_{base}_quartiles"] = quartiles(ratios)
    return row


def quartiles(values: list[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    return low, high


def count(loop: Loop, steps: int) -> dict[str, Any]:
    """Of a step: dispatched operations, readings by the host, and files looked up (None where strace cannot count)."""
    counts = ops_per_step(loop, steps)
    look_ups, problem = look_ups_per_step(loop, steps)
    told = {"why_not_counted": problem} if problem else {}
    return {"ops": counts.total() / steps, "items": counts[READ_BY_HOST] / steps, "look_ups": look_ups, **told}


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    ratios = [f"to_{base}" for base in BASES if any(f"to_{base}" in row for row in rows.values())]
    heads = "".join(f"{head.replace('to_', '/ '):>28}" for head in ratios)
    print(f"{'':14}{'ms/step':>9}{'least':>9}{heads}{'ops':>8}{'.item()':>9}{'stat':>7}")
    for name, row in rows.items():
        cells = "".join(f"{row[key]:14.3f} ({row[f'{key}_quartiles'][0]:.3f}-{row[f'{key}_quartiles'][1]:.3f})"
                        for key in ratios)  # fmt: skip
        look_ups = "-" if row["look_ups"] is None else f"{row['look_ups']:.2f}"
        counts = f"{row['ops']:8.1f}{row['items']:9.2f}{look_ups:>7}"
        print(f"{name:14}{row['ms']:9.3f}{row['least_ms']:9.3f}{cells}{counts}", flush=True)
    if "bare" in rows and "bare_again" in rows:
        print(f"control: bare_again / bare = {rows['bare_again']['to_bare']:.3f}")
    for why in {row["why_not_counted"] for row in rows.values() if "why_not_counted" in row}:
        print(f"stat calls not counted: {why}")


def profile(setting: Setting, steps: int) -> dict[str, float]:
    shares = host_time(setting, steps)
    print(f"\nours on the tiny net, microseconds a step over {steps} steps (a line each {setting.log_every})")
    for name, microseconds in shares.items():
        print(f"{name:36}{microseconds:10.1f}")
    return shares


if __name__ == "__main__":
    raise SystemExit(main())
