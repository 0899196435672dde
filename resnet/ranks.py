"""What the ranks of a run tell one another beside training: small values, in set-up and where something went wrong."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch.distributed as dist

from resnet.process.mistakes import OfAllRanks

T = TypeVar("T")

SETUP_TIMEOUT = timedelta(hours=6)
"""How long ranks wait for the one that prepares the data (a download, a conversion of 150 GB)."""


def together(task: Callable[[], T], local_rank: int = 0, first_alone: bool = False) -> T:
    """Run a task on all ranks; where it fails on any, raise the ValueError of the first such rank on every one.

    first_alone: let the first rank of each node go before the others (for what is made once on disk).
    """
    result: T | None = None
    error: ValueError | OSError | None = None
    for turn in (0, 1) if first_alone else (None,):
        if turn is None or (local_rank > 0) == bool(turn):
            try:
                result = task()
            except (ValueError, OSError) as raised:
                error = raised
        message = first_of_ranks(None if error is None else str(error))
        if message is not None:
            raise (OfAllRanks if dist.is_initialized() else ValueError)(message) from error
    return result  # pyright: ignore[reportReturnType]


def of_all_ranks(value: T) -> list[T]:
    """Every rank's value, in their order, on every rank; they are pickled, so small and of this program's own."""
    if not dist.is_initialized():
        return [value]
    values: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_patient_group())
    return values


def first_of_ranks(value: T | None) -> T | None:
    """The value of the first rank that has one."""
    return next((v for v in of_all_ranks(value) if v is not None), None)


def least_of_ranks(value: int) -> int:
    """The smallest of all ranks' values."""
    return min(of_all_ranks(value))


def of_node(value: T | None) -> T | None:
    """The value of the first rank of this machine that has one."""
    values = of_all_ranks((socket.gethostname(), value))
    return next((v for host, v in values if host == socket.gethostname() and v is not None), None)


@cache
def _patient_group() -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=SETUP_TIMEOUT)
    assert isinstance(group, dist.ProcessGroup)
    return group
