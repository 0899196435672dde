"""Rows of a table measured in turns: shuffled anew in each round, medians, and ratios within a round."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.loop import quartiles
from tests.bench.loops import in_turns


class Spent(NamedTuple):
    """Of one turn."""

    images: int
    process: float
    """Seconds of processor time, child processes included."""
    wall: float


Turn = Callable[[int], Spent]
"""Of the round so numbered."""


def take_turns(turns: Mapping[str, Turn], rounds: int, seed: int = 0) -> dict[str, list[Spent]]:
    """The turns of each row; one round before the others warms up."""
    spent: dict[str, list[Spent]] = {name: [] for name in turns}
    for name, turn, counts in in_turns(turns, rounds, seed):
        measured = turn(len(spent[name]))
        if counts:
            spent[name].append(measured)
    return spent


class Clock:
    """Processor and wall time from its making on."""

    def __init__(self) -> None:
        self._process, self._wall = processor_time(), time.perf_counter()

    def spent(self, images: int) -> Spent:
        return Spent(images, processor_time() - self._process, time.perf_counter() - self._wall)


def processor_time() -> float:
    """Seconds of this process and those it started (those that still live only on Linux)."""
    own = os.times()
    ended = own.children_user + own.children_system
    return time.process_time() + ended + sum(map(_of_process, _descendants(os.getpid())))


def _descendants(pid: int) -> Iterator[int]:
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, file.read_text().split()):
                yield child
                yield from _descendants(child)


def _of_process(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def summary(spent: Mapping[str, list[Spent]], base: str, by: str = "process") -> dict[str, dict[str, Any]]:
    """Of each row: medians over the rounds of ms an image and images a second, and how much faster than `base`."""
    rows: dict[str, dict[str, Any]] = {}
    for name, turns in spent.items():
        rows[name] = {
            "ms": 1000 * statistics.median(turn.process / turn.images for turn in turns),
            "images_per_second": statistics.median(turn.images / turn.wall for turn in turns),
            "turns": [turn._asdict() for turn in turns],
        }
        if base in spent:
            pairs = zip(spent[base], turns, strict=True)
            ratios = [_each(reference, by) / _each(own, by) for reference, own in pairs]
            rows[name]["ratio"] = statistics.median(ratios)
            rows[name]["ratio_quartiles"] = quartiles(ratios)
    return rows


def _each(turn: Spent, by: str) -> float:
    return max(getattr(turn, by), 1e-9) / turn.images


def print_rows(title: str, rows: Mapping[str, dict[str, Any]], columns: Mapping[str, str]) -> None:
    """columns: headings by the key of what stands below; a row with `left_out` says why it has none."""
    print(f"\n{title}")
    width = max(map(len, rows))
    print(" " * width + "".join(f"{heading:>14}" for heading in columns.values()) + "   quartiles")
    for name, row in rows.items():
        if "left_out" in row:
            print(f"{name:{width}}  {row['left_out']}")
            continue
        cells = "".join(f"{'-' if row.get(key) is None else format(row[key], '.3f'):>14}" for key in columns)
        low, high = row.get("ratio_quartiles", (float("nan"), float("nan")))
        print(f"{name:{width}}{cells}   {low:.2f}-{high:.2f}", flush=True)
