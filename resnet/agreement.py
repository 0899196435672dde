"""From a wish of any rank, to save or to stop, to what all ranks do at the same step."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from resnet.ranks import processes_of_node, wait_beside

NOTHING, SAVE, STOP = 0, 1, 2
"""What a rank may wish for; the largest wish is granted to all."""

STEP_TIMEOUT = timedelta(minutes=10)
"""After which ranks that wait for one another in training give up."""


Answer = Callable[[], int]
"""Waits for a reduction that has been begun, and gives what it came to."""


class Agreement:
    """Every step each rank says what it wishes, and learns the largest wish of all ranks of the step before.

    The reduction goes beside the step, over the group that the gradients go over (the same order of operations on all
    ranks, since each wishes at the same place of its program): neither host nor device waits for it, but for the host
    of a GPU that has run more than a step ahead of it.
    """

    def __init__(self, device: torch.device) -> None:
        self._begin: Callable[[int], Answer] | None = None
        if dist.is_initialized() and dist.get_world_size() > 1:
            # With gloo ranks that share a GPU, as in tests, reduce their gradients through the CPU.
            over_device = device.type == "cuda" and dist.get_backend() != "gloo"
            self._begin = ReduceOnDevice(device) if over_device else reduce_on_cpu
        self._answer: Answer | None = None

    def reach(self, wish: int) -> int:
        if self._begin is None:
            return wish
        granted = NOTHING if self._answer is None else self._answer()
        self._answer = self._begin(wish)
        return granted


def reduce_on_cpu(wish: int) -> Answer:
    """Begin to find the largest of all ranks' wishes."""
    tensor = torch.tensor(wish)
    work = dist.all_reduce(tensor, op=dist.ReduceOp.MAX, async_op=True)
    assert work is not None

    def answer() -> int:
        work.wait()
        return int(tensor)

    return answer


class ReduceOnDevice:
    """As `reduce_on_cpu`, for a group that takes tensors of a GPU alone (NCCL); one at a time.

    On a stream of its own: on that of the step the reduction would wait for the optimizer, and the next step for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._copied = torch.cuda.Event()
        self._found = torch.zeros((), dtype=torch.int32, pin_memory=True)
        self._neighbours = processes_of_node()

    def __call__(self, wish: int) -> Answer:
        with torch.cuda.stream(self._stream):
            tensor = torch.full((), wish, dtype=torch.int32, device=self._device)
            work = dist.all_reduce(tensor, op=dist.ReduceOp.MAX, async_op=True)
            assert work is not None
            # It is the stream that waits.
            work.wait()
            self._found.copy_(tensor, non_blocking=True)
            self._copied.record()
        return self._read

    def _read(self) -> int:
        wait_beside(self._neighbours, self._copied.query)
        return int(self._found)
