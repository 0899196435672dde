"""From a wish of any rank, to save or to stop, to what all ranks do at the same step."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

NOTHING, SAVE, STOP = 0, 1, 2
"""What a rank may wish for; the largest wish is granted to all."""

STEP_TIMEOUT = timedelta(minutes=10)
"""After which ranks that wait for one another in training give up."""


class Agreement:
    """Every step each rank says what it wishes, and learns the largest wish of all ranks of the step before.

    The reduction runs on the CPU beside the step, so that neither host nor device waits for it.
    """

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        if dist.is_initialized() and dist.get_world_size() > 1:
            group = dist.new_group(backend="gloo", timeout=STEP_TIMEOUT)
            assert isinstance(group, dist.ProcessGroup)
            self._group = group
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def reach(self, wish: int) -> int:
        if self._group is None:
            return wish
        granted = NOTHING
        if self._pending is not None:
            work, tensor = self._pending
            work.wait()
            granted = int(tensor)
        tensor = torch.tensor(wish)
        work = dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        self._pending = work, tensor
        return granted
