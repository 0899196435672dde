"""What `resnet replay` compares: log lines of the same steps, checkpoints, and files that have changed meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from recipes.plan import Plan
from recipes.text import plural
from resnet.checkpoint.commit import CheckpointError, read_manifest
from resnet.checkpoint.snapshot import EMA, MODEL
from resnet.data.order import Order
from resnet.data.sources.source import Source
from resnet.metrics import UNIT
from resnet.rundir.metrics_log import DIGEST_RANGE, INPUT_DIGEST
from resnet.tools.difference import Parting, line_of, parting_of

Row = Mapping[str, Any]
_MOST_FILES = 200_000
_MOST_NAMED = 5


def log_lines(rows: Sequence[Row], first: int, last: int) -> list[Row]:
    """The lines that the steps after `first` up to `last` leave, and that of an evaluation after step `first`."""
    return [row for row in rows if first + (line_of(row)[1] == "train") <= row["step"] <= last]


def compare_logs(of_run: Sequence[Row], again: Sequence[Row], first: int, last: int) -> Parting | None:
    """Where the log of a run and that of its steps trained again part; the second may have more lines.

    Both whole, as up to `first` they say how many samples a line is about.
    """
    wanted = log_lines(of_run, first, last)
    steps = [row["step"] for row in wanted if line_of(row)[1] == "train"]
    before = max((row["samples"] for row in of_run if "train/loss" in row and row["step"] <= first), default=0)
    train = [row for row in log_lines(again, first, last) if "train/loss" in row]
    merged = [row for row in log_lines(again, first, last) if "train/loss" not in row]
    for step in steps:
        part, train = [row for row in train if row["step"] <= step], [row for row in train if row["step"] > step]
        if part:
            merged.append(_merged(part, before))
            before = part[-1]["samples"]
    return parting_of(wanted, merged)


def _merged(rows: Sequence[Row], before: int) -> Row:
    """Consecutive lines as one, to the last bit as it would have been logged.

    before: samples seen when the first of them began.
    """
    if len(rows) == 1:
        return rows[0]
    loss, right, start = 0.0, 0, before
    for row in rows:
        samples = row["samples"] - start
        loss += round(row["train/loss"] * samples * UNIT) / UNIT
        right += round(row["train/top1"] * samples / 100)
        start = row["samples"]
    samples = max(start - before, 1)
    merged = {**rows[-1], "train/loss": loss / samples, "train/top1": 100 * right / samples}
    if INPUT_DIGEST in rows[0]:
        merged[INPUT_DIGEST] = sum(row[INPUT_DIGEST] for row in rows) % DIGEST_RANGE
    return merged


def missing_lines(of_run: Sequence[Row], again: Sequence[Row], first: int, last: int) -> list[str]:
    """Lines that the run has of these steps, and the training again has not."""
    have = {line_of(row) for row in again}
    gone = [line_of(row) for row in log_lines(of_run, first, last) if line_of(row) not in have]
    return [f"the run logged a line ({kind}) of step {step}, which was not made again" for step, kind in gone]


def fault_of(checkpoint: Path) -> str | None:
    """Why a checkpoint's files are not as its manifest says; None: they are."""
    try:
        read_manifest(checkpoint)
    except CheckpointError as error:
        return str(error)
    return None


def apart(start: Path, one: Path, other: Path) -> float:
    """How far two networks are apart, as a share of how far the first has moved since the start (L2 norms)."""
    weights = [safetensors.torch.load_file(path / MODEL if path.is_dir() else path) for path in (start, one, other)]
    moved, distance = 0.0, 0.0
    for name, tensor in weights[1].items():
        # Running statistics have scales of their own, and counters none.
        if tensor.is_floating_point() and not name.endswith(("running_mean", "running_var")):
            moved += (tensor.double() - weights[0][name].double()).square().sum().item()
            distance += (tensor.double() - weights[2][name].double()).square().sum().item()
    return (distance / moved) ** 0.5 if moved else float(distance > 0)


def compare_weights(file: Path, checkpoint: Path) -> list[str]:
    """What differs between a file of weights and the network, or its average, of a checkpoint; in words."""
    averaged = checkpoint / EMA
    one = safetensors.torch.load_file(file)
    other = safetensors.torch.load_file(averaged if averaged.is_file() else checkpoint / MODEL)
    if one.keys() != other.keys():
        return [f"{file.name} is of another network"]
    return [f"{file.name}: {name} differs" for name in one if not torch.equal(one[name], other[name])]


def changed_files(train: Source, order: Order, plan: Plan, steps: range, since: float) -> list[str]:
    """Training images of these steps whose files changed after `since` (unix time), with the first step of each.

    steps: counted by the steps that are done before.
    Where most of them did, as in a copy of the data, that alone is said: it tells none from another.
    """
    found, looked_at = [], 0
    for step, index in _images_of(order, plan, steps):
        file = train.describe(index)
        try:
            changed = os.stat(file).st_mtime
        except OSError:
            # A row of a table, or gone: training again told of that one itself.
            continue
        looked_at += 1
        if changed > since:
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(changed))
            found.append(
                f"{file} was changed at {at}, after the run had trained on it: resnet look --step {step + 1} shows it"
            )
    if len(found) > looked_at / 2:
        return [
            f"{len(found)} of {looked_at} image files are newer than the training, as in a copy of the data: which of "
            "them hold other images cannot be told by their times"
        ]
    more = [f"and {plural(len(found) - _MOST_NAMED, 'more file')}"] if len(found) > _MOST_NAMED else []
    return found[:_MOST_NAMED] + more


def _images_of(order: Order, plan: Plan, steps: range) -> Iterator[tuple[int, int]]:
    """Steps done before it, and index, of each image, once, in the order of the steps."""
    seen: set[int] = set()
    for step in steps:
        first, last = plan.slot(step, 0)[0], plan.slot(step, plan.slots - 1)[1]
        drawn = order.at(step // plan.steps_per_epoch, np.arange(first, last))
        for index in drawn.tolist():
            if index not in seen:
                seen.add(index)
                yield step, index
        if len(seen) > _MOST_FILES:
            return
