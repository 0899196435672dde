"""What the ranks of a run tell one another beside training: small values, in set-up and where something went wrong.

Those go through the store that the process group was made by, a server on rank 0 with one
connection to each rank. Rank 0 collects what all have to say and publishes one answer: messages grow with the number of
ranks, connections not at all. A group of gloo or NCCL for it would connect all to all.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import socket
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _get_default_store

from recipes.text import listed
from resnet.process.mistakes import OfAllRanks
from resnet.process.processes import is_alive, pid_namespace

T = TypeVar("T")
A = TypeVar("A")

SETUP_TIMEOUT = timedelta(hours=6)
"""How long ranks wait for the one that prepares the data (a download, a conversion of 150 GB)."""
LEAVE_TIMEOUT = timedelta(minutes=1)
"""How long rank 0 waits at the end for the others, which may still read from its store."""
_MEMORY = 2**24
"""Bytes of a GPU that a gather takes at most, or those of one rank's tensor."""
_SHORTEST, _LONGEST = 0.001, 0.5
"""Seconds between two looks at the store. A wait inside it would hold up the second Ctrl-C, and NCCL's own threads."""


def meet_at_rank_0() -> None:
    """Let rank 0 serve the store of the process group to come where torchrun's agent would.

    The agent's ends with the launcher, which ranks outlive to save where it is killed.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agents = dist.TCPStore(host, port, is_master=False)
    key = f"resnet/port/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if os.environ["RANK"] == "0":
        # It lives as long as the process; the group's, on the same port, is then this one.
        _servers.append(dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, multi_tenant=True))
        agents.set(key, str(_servers[-1].port))
    os.environ["MASTER_PORT"] = agents.get(key).decode()
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"


_servers: list[dist.TCPStore] = []


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
    """Every rank's value, in their order, on every rank: as much to read as there are ranks, by as many."""
    return _answer(value, list)


def first_of_ranks(value: T | None) -> T | None:
    """The value of the first rank that has one."""
    return _answer(value, _first)


def least_of_ranks(value: int) -> int:
    """The smallest of all ranks' values."""
    return _answer(value, min)


def of_node(value: T | None) -> T | None:
    """The value of the first rank of this machine that has one."""
    return _answer((socket.gethostname(), value), _by_host).get(socket.gethostname())


def processes_of_node() -> list[int]:
    """Of the ranks of this machine, as far as they are to be seen from here (not those of another container)."""
    found = _answer((pid_namespace(), os.getpid()), _all_by_place)[pid_namespace()]
    return [process for process in found if is_alive(process)]


def wait_beside(processes: Sequence[int], done: Callable[[], bool]) -> None:
    """Until something is done that needs all ranks, which may be for ever where one is gone: NCCL does not notice the
    end of a process of the same machine. Raises dist.DistNetworkError where one of the processes has ended.
    """
    start, pause = time.monotonic(), _SHORTEST / 10
    while not done():
        if time.monotonic() - start > 1 and (gone := [process for process in processes if not is_alive(process)]):
            raise dist.DistNetworkError(f"remote process exited: {listed(gone)}")
        time.sleep(pause)
        pause = min(_LONGEST / 100, 1.25 * pause)


def gather(mine: Tensor) -> Tensor | None:
    """All ranks' tensors, as (ranks, *mine.shape) on rank 0; None on the others. With several ranks on the CPU."""
    if not dist.is_initialized() or not mine.numel():
        return mine[None].expand(dist.get_world_size() if dist.is_initialized() else 1, *mine.shape)
    if dist.get_backend() == "gloo":
        return _gather_as_tree(mine)
    return _gather_as_sums(mine)


def _gather_as_sums(mine: Tensor, memory: int = _MEMORY) -> Tensor | None:
    """Some ranks' rows at a time, as sums of bytes with the others' zeros, in no more than `memory` bytes of a device.

    NCCL's own gather would connect rank 0 to all others, with buffers on its device for each, which nothing has counted
    when the micro-batch was fitted; a reduction goes to the neighbours that the gradients' go to.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    row = mine.contiguous().view(-1).view(torch.uint8)
    at_once = max(1, memory // len(row))
    parts = []
    for first in range(0, ranks, at_once):
        part = row.new_zeros(min(at_once, ranks - first), len(row))
        if first <= rank < first + len(part):
            part[rank - first] = row
        dist.reduce(part, 0)
        if rank == 0:
            parts.append(part.cpu())
    return torch.cat(parts).view(mine.dtype).view(ranks, *mine.shape) if rank == 0 else None


def _gather_as_tree(mine: Tensor) -> Tensor | None:
    """Of neighbours, then of pairs of them, and so on, on the CPU: gloo's own gather would connect all to rank 0."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    found, width = mine[None].cpu().contiguous(), 1
    while width < ranks:
        if rank & width:
            dist.send(found, rank - width)
            return None
        if rank + width < ranks:
            theirs = found.new_empty(min(width, ranks - rank - width), *mine.shape)
            dist.recv(theirs, rank + width)
            found = torch.cat([found, theirs])
        width *= 2
    return found


def leave_ranks(together: bool = True) -> None:
    """Leave the process group. together: whether all ranks do, so that rank 0, which has the store, goes last."""
    if not dist.is_initialized():
        return
    if together:
        store = _get_default_store()
        # Whoever is gone by now has nothing more to read.
        with contextlib.suppress(dist.DistError, RuntimeError):
            store.set(f"ranks/left/{dist.get_rank()}", "")
            if dist.get_rank() == 0:
                _wait(store, [f"ranks/left/{rank}" for rank in range(1, dist.get_world_size())], LEAVE_TIMEOUT)
    _processes.clear()
    dist.destroy_process_group()


def _first(values: Sequence[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)


def _by_host(values: Sequence[tuple[str, T | None]]) -> dict[str, T]:
    return {host: value for host, value in reversed(values) if value is not None}


def _all_by_place(values: Sequence[tuple[str, int]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place, process in values:
        found.setdefault(place, []).append(process)
    return found


_numbers = itertools.count()


def _answer(value: T, of: Callable[[Sequence[T]], A]) -> A:
    """On every rank what rank 0 makes of all ranks' values, in their order.

    Values are pickled, so small and of this program's own. Raises dist.DistError where rank 0 is gone, or a rank of its
    machine; one of another machine is for the launcher to notice, which ends them all.
    """
    if not dist.is_initialized():
        return of([value])
    store, rank, ranks, number = _get_default_store(), dist.get_rank(), dist.get_world_size(), next(_numbers)
    answer = f"ranks/{number}/answer"
    if rank > 0:
        place = pid_namespace(), os.getpid()
        store.set(f"ranks/{number}/{rank}", pickle.dumps((place, value)))  # pyright: ignore[reportArgumentType]
        _wait(store, [answer], SETUP_TIMEOUT)
        return pickle.loads(store.get(answer))
    keys = [f"ranks/{number}/{other}" for other in range(1, ranks)]
    _wait(store, keys, SETUP_TIMEOUT)
    told = [pickle.loads(one) for one in (store.multi_get(keys) if keys else [])]
    # They wait for the answer: one that is not seen to be alive is not seen from here.
    _processes[:] = [pid if place == pid_namespace() and is_alive(pid) else None for (place, pid), _ in told]
    found = of([value, *(one for _, one in told)])
    store.set(answer, pickle.dumps(found))  # pyright: ignore[reportArgumentType]
    # All have read the answer before: they have come to this one.
    for key in [*keys, f"ranks/{number - 1}/answer"]:
        store.delete_key(key)
    return found


_processes: list[int | None] = []
"""On rank 0: the process of each other rank of this machine, once it has said anything."""


def _wait(store: dist.Store, keys: list[str], timeout: timedelta) -> None:
    """Until a store has all keys. Raises dist.DistError after the timeout, or where a rank is seen to be gone."""
    start, pause = time.monotonic(), _SHORTEST
    while not store.check(keys):
        waited = time.monotonic() - start
        if waited > timeout.total_seconds():
            missing = [key for key in keys if not store.check([key])]
            raise dist.DistStoreError(f"timed out after {timeout}, waiting for {listed(missing)}")
        if waited > 1:
            _look_for_the_dead(store, keys)
        time.sleep(pause)
        pause = min(_LONGEST, 1.25 * pause)


def _look_for_the_dead(store: dist.Store, keys: list[str]) -> None:
    for process, key in zip(_processes, keys, strict=False):
        if process is not None and not is_alive(process) and not store.check([key]):
            raise dist.DistNetworkError(f"remote process exited: {process}, without {key}")
