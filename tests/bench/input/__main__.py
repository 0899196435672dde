"""What reading, decoding and augmenting images costs: ours, bare decoders and other people's, taking turns.

    python -m tests.bench.input --images FOLDER [--cifar FOLDER] [--quick] [--only TABLE ...] [--out FILE]

--images is any folder of JPEGs (for `loaders` one folder a class), --cifar one of CIFAR-10's parquet files. Tables:

    plain        crop and flip at 224 px, per image: one process, one thread, files in memory, processor time; for
                 ours also what `resnet prepare` makes of the files
    randaugment  with the policy of resnet50_imagenet_rsb_a2, at 224 px
    trivial      with that of resnet50_imagenet_tv2, at 176 px
    cifar        CIFAR-10 at 32 px, in one process
    loaders      whole loaders from disk with two workers: images a second, and processor time

The first three are measured on the files as they are, and made again with a longer side of at most 400 px at quality
90. All rows end in normalised float32 batches. Ratios are to the reference within a round; what `reference again` is
away from 1 is noise. The error is the mean absolute difference of the pixels to the reference's, in levels of 0 to
255, with the same crops and flips (docs/prepare.md has that of prepared images, whose boxes are others).

A package that is not installed is a row that says so: pip install -e '.[bench,fast]', and for DALI, which is large,
nvidia-dali-cuda120 'nvidia-nvimgcodec-cu12[all]'. FFCV needs a compiler, OpenCV and libjpeg-turbo; its row has not run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.schema.recipe import Recipe
from resnet.data.sources.given import images_of
from resnet.tools.prepare.forms import store
from tests.bench.input import cifar
from tests.bench.input.loaders import ALONE, LOADERS, Place, turn_of
from tests.bench.input.rows import DECODERS, PLAIN, PREPARED, Made, Row, with_policy
from tests.bench.input.turns import Clock, Spent, Turn, print_rows, summary, take_turns
from tests.bench.input.work import BATCH, SMALLER, Held, levels, read_files, recipe_of
from tests.bench.loop import pin_to_one_core
from tests.bench.machine import facts, headline

TABLES = ("plain", "randaugment", "trivial", "cifar", "loaders")
_REFERENCE = next(iter(PLAIN))
_DECODER = next(iter(DECODERS))


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    found = facts()
    print(headline(found), flush=True)
    report: dict[str, Any] = {"machine": found, "tables": {}}
    for title, table in _tables(given):
        report["tables"][title] = table()
        if given.out:
            given.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.input", description="time reading and augmenting")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="JPEGs, one folder a class")
    parser.add_argument("--cifar", type=Path, metavar="FOLDER", help="CIFAR-10's parquet files")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES), metavar="TABLE")
    parser.add_argument("--count", type=int, default=160, metavar="N", help="images in memory (160)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="of whole loaders (2)")
    parser.add_argument("--quick", action="store_true", help="a few images, one round: tries the bench")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything as JSON")
    return parser


def _tables(given: argparse.Namespace) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """What was asked for, by title."""
    if given.quick:
        given.count, given.rounds = 8, 1
    tables: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    policies = {
        "plain": (recipe_of("resnet50_imagenet"), {**PLAIN, **DECODERS}),
        "randaugment": (
            recipe_of("resnet50_imagenet_rsb_a2"),
            with_policy("rand-m7-n2-mstd0.5-p1", "rand-m7-n2-mstd0.5"),
        ),
        # timm has no TrivialAugment: one operation, of any magnitude. (Without inc1 it posterizes to 0 bits, which
        # newer versions of Pillow refuse.)
        "trivial": (recipe_of("resnet50_imagenet_tv2"), with_policy("rand-m10-n1-mstd101-p1-inc1")),
    }
    for name, (recipe, rows) in policies.items():
        for what in ("as they are", "at most 400 px") if name in given.only else ():
            of_table = {**rows, **PREPARED} if (name, what) == ("plain", "as they are") else rows
            tables.append((f"{name}, {what}", partial(_per_image, name, what, recipe, of_table, given)))
    if "cifar" in given.only and given.cifar:
        tables.append(("cifar", partial(_cifar, given)))
    if "loaders" in given.only:
        tables.append(("loaders", partial(_loaders, given)))
    return tables


def _per_image(
    name: str, what: str, recipe: Recipe, rows: Mapping[str, Made], given: argparse.Namespace
) -> dict[str, Any]:
    files = read_files(given.images, given.count)
    held = Held(files if what == "as they are" else [store(SMALLER, file).data for file in files])
    usable, missing = _installed(rows)
    made = {row: rows[row].make(recipe, held) for row in usable}
    with _pinned():
        spent = take_turns({row: _turn(make, held) for row, make in made.items()}, given.rounds * held.batches)
    table: dict[str, Any] = summary(spent, _REFERENCE) | missing
    for row, error in _errors(made, rows, held, recipe).items():
        table[row]["error"] = error
    size = sum(map(len, held.files)) / len(held) / 1000
    title = f"{name}: {len(held)} files {what} ({size:.0f} KB), {recipe.augment.train_size} px, {given.rounds} rounds"
    print_rows(title, table, {"ms": "ms/image", "ratio": "times as fast", "error": "error"})
    return table


def _turn(row: Row, held: Held) -> Turn:
    """A micro-batch: short turns are in step with what else the machine does."""

    def turn(number: int) -> Spent:
        work = held.batch(number)
        clock = Clock()
        row(work)
        return clock.spent(len(work.files))

    return turn


def _errors(made: Mapping[str, Row], rows: Mapping[str, Made], held: Held, recipe: Recipe) -> dict[str, float]:
    """Of each row that can be compared: mean absolute difference to the reference's pixels, in levels of 0 to 255."""
    errors = {}
    for name, row in made.items():
        base = _DECODER if name in DECODERS else _REFERENCE
        if not rows[name].same_crops or base not in made:
            continue
        works = map(held.batch, range(held.batches))
        pairs = (pair for work in works for pair in zip(made[base](work), row(work), strict=True))
        errors[name] = statistics.mean(_difference(*pair, recipe) for pair in pairs)
    return errors


def _difference(reference: Any, own: Any, recipe: Recipe) -> float:
    reference, own = (torch.tensor(image) if isinstance(image, np.ndarray) else image for image in (reference, own))
    if own.is_floating_point():
        reference, own = levels(reference, recipe), levels(own, recipe)
    return (reference.float() - own.float()).abs().mean().item()


def _installed(rows: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Names of the rows whose packages are here; and rows that say which are not."""
    missing = {name: row.needs for name, row in rows.items() if not _is_installed(row.needs)}
    told = {name: {"left_out": f"{package} is not installed"} for name, package in missing.items()}
    return [name for name in rows if name not in missing], told


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


@contextlib.contextmanager
def _pinned() -> Iterator[None]:
    """On one core, where the system can."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    pin_to_one_core()
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)


def _cifar(given: argparse.Namespace) -> dict[str, Any]:
    turns = cifar.turns(given.cifar, 256 if given.quick else 5000)
    with _pinned():
        rows = summary(take_turns(turns, given.rounds), next(iter(turns)))
    print_rows("CIFAR-10, 32 px, one process", rows, {"ms": "ms/image", "ratio": "times as fast"})
    return rows


def _loaders(given: argparse.Namespace) -> dict[str, Any]:
    usable, missing = _installed(LOADERS)
    count = len(list(images_of(given.images)))
    with tempfile.TemporaryDirectory() as scratch:
        place = Place(
            given.images, Path(scratch), recipe_of("resnet50_imagenet"), count, min(BATCH, max(2, count // 8))
        )
        turns = {name: turn_of(LOADERS[name].make, place, LOADERS[name].workers or given.workers) for name in usable}
        spent = take_turns(turns, given.rounds)
    base = next(iter(LOADERS))
    rows: dict[str, Any] = summary(spent, base, by="wall") | missing
    columns = {"images_per_second": "images/s", "ratio": "times as fast", "ms": "CPU ms/image"}
    print_rows(f"loaders: {count} files, {given.workers} workers, {given.rounds} rounds", rows, columns)
    for several, one in ALONE.items():
        speeds = [statistics.median(turn.images / turn.wall for turn in spent[name]) for name in (several, one)]
        print(f"{several}: {speeds[0] / speeds[1]:.2f} times as fast as with 1 worker")
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
