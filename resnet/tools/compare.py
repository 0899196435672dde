"""Whether two runs ended alike: their last checkpoints tensor by tensor, and their logs line by line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from resnet.checkpoint.commit import newest_first
from resnet.checkpoint.snapshot import EMA, MODEL, read_rest
from resnet.rundir.metrics_log import read_metrics
from resnet.tools.difference import row_differences

_NOT_STATE = ("recipe", "digest", "log_length", "window", "order")
"""What a checkpoint holds beside the state."""


def compare_runs(one: Path, other: Path) -> list[str]:
    """What differs between the newest checkpoints and the logs of two runs, in words; empty: they are equal.

    Raises ValueError for a run without a checkpoint.
    """
    first, second = (_newest(run) for run in (one, other))
    if first.name != second.name:
        return [f"the last checkpoints are {first.name} and {second.name}"]
    return compare_checkpoints(first, second) + list(_log_differences(read_metrics(one), read_metrics(other)))


def compare_checkpoints(first: Path, second: Path, window: bool = True) -> list[str]:
    """What differs between two checkpoints, tensor by tensor and counter by counter, in words; empty: they are equal.

    window: compare also what the log had counted since its last line, which depends on `log_every`; where the versions
    that wrote them counted the same.
    """
    found = []
    for file in (MODEL, EMA):
        present = [(checkpoint / file).is_file() for checkpoint in (first, second)]
        if all(present):
            pair = [safetensors.torch.load_file(checkpoint / file) for checkpoint in (first, second)]
            found += _differences(file.partition(".")[0], *pair)
        elif any(present):
            found.append(f"only one of them has {file}")
    rests = [read_rest(checkpoint) for checkpoint in (first, second)]
    pair = [{key: value for key, value in rest.items() if key not in _NOT_STATE} for rest in rests]
    if not window or rests[0].get("window") != rests[1].get("window"):
        pair = [{key: value for key, value in rest.items() if key != "windows"} for rest in pair]
    return found + list(_differences("state", *pair))


def _newest(run: Path) -> Path:
    if checkpoints := newest_first(run / "checkpoints"):
        return checkpoints[0]
    raise ValueError(f"{run} has no checkpoint yet")


def _differences(name: str, one: Any, other: Any) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from _differences(f"{name}.{key}", one[key], other[key])
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from _differences(f"{name}.{index}", *pair)
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and one.shape == other.shape:
        # Of what is not known, nan, in both nothing differs.
        if not torch.equal(one, other) and not torch.allclose(one, other, rtol=0, atol=0, equal_nan=True):
            difference = (one.double() - other.double()).abs()
            share = (difference != 0).double().mean().item()
            yield f"{name}: {100 * share:.1f}% of its elements differ, by up to {difference.max().item():.3g}"
    elif one != other:
        yield f"{name}: {one} and {other}"


def _log_differences(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> Iterator[str]:
    if len(one) != len(other):
        yield f"the logs have {len(one)} and {len(other)} lines"
    for number, rows in enumerate(zip(one, other, strict=False), 1):
        if pairs := row_differences(*rows):
            told = ", ".join(f"{key} ({left}, {right})" for key, (left, right) in pairs.items())
            yield f"line {number} of the logs differs in {told}"
