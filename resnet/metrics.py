"""What is counted, on the device until someone asks for it: nothing here makes the host wait except `read`."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from resnet.rundir.metrics_log import DIGEST_RANGE

WINDOW = 8
"""Numbers in a window."""
SUMMED = [0, 1, 2, 3, 6, 7]
"""Which of them are added up over ranks; of the others the largest counts."""
_HORIZON = 2**52
"""Above any step; HORIZON - step is largest for the earliest step, so that MAX over ranks finds it."""
UNIT = 2.0**20
"""Sums of losses are of whole multiples of 1 / UNIT, so that they are the same in whichever order they are made."""
_LOW_BITS = 26
_MOST_KEPT = 256
"""Micro-batches whose losses are kept before they are summed, which bounds the memory that they take."""


class Means(NamedTuple):
    """Over all ranks, since the last line of the log."""

    loss: float
    top1: float
    """Percent."""
    broken: int
    """Images of this epoch so far that could not be read."""
    skipped: int
    """fp16 steps that the scaler skipped in the run so far."""
    bad_step: int
    """Steps done before the first one whose loss was not finite; -1 for none."""
    input_digest: int | None
    """Sum of the images' checksums modulo DIGEST_RANGE; None where an older version began to count."""


class Window:
    """Sums over the steps since the last line of the log, of this rank.

    A micro-batch costs the device nothing here: its loss is kept as it is, and all are summed when someone asks. The
    sums are of whole multiples of 2**-20, which doubles add without rounding, so that they are the same whenever and
    over however many ranks they are added up.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sums = torch.zeros(WINDOW, dtype=torch.float64, device=device)
        self._losses: list[torch.Tensor] = []
        self._right: list[torch.Tensor] = []
        self._checksums: list[torch.Tensor] = []
        self._facts: list[tuple[int, int, int]] = []

    @property
    def sums(self) -> torch.Tensor:
        """Loss, right, samples, broken images of the epoch, skipped steps, HORIZON - the first bad step (0: none), and
        low and high bits of the micro-batches' digests, each added up."""
        self._fold()
        return self._sums

    def add(
        self, step: int, loss: torch.Tensor, right: torch.Tensor, checksum: torch.Tensor, samples: int, broken: int
    ) -> None:
        """Count a micro-batch of the step that is made when `step` are done; the tensors are kept as they are.

        loss: mean over its `samples` images; right: how many of them the network got right; checksum: of its images.
        """
        self._losses.append(loss.detach())
        self._right.append(right)
        self._checksums.append(checksum)
        self._facts.append((samples, broken, _HORIZON - step))
        if len(self._losses) == _MOST_KEPT:
            self._fold()

    @torch.no_grad()
    def _fold(self) -> None:
        if not self._losses:
            return
        sums, losses = self._sums, torch.stack(self._losses).double()
        facts = torch.tensor(self._facts, dtype=torch.float64, pin_memory=sums.is_cuda)
        samples, broken, bad = facts.to(sums.device, non_blocking=True).unbind(1)
        finite = torch.isfinite(losses)
        # What is not finite ends the run by its step alone.
        weighted = torch.where(finite, losses * samples, 0.0)
        right = torch.stack(self._right).double()
        sums[:4].add_(torch.stack([(weighted * UNIT).round() / UNIT, right, samples, broken]).sum(1))
        sums[5].clamp_(min=torch.where(finite, 0.0, bad).amax())
        digests = torch.stack(self._checksums) & (DIGEST_RANGE - 1)
        sums[6:].add_(torch.stack([digests & (2**_LOW_BITS - 1), digests >> _LOW_BITS]).double().sum(1))
        self._losses, self._right, self._checksums, self._facts = [], [], [], []

    def add_skipped(self, scaler: Any, optimizer: torch.optim.Optimizer) -> None:
        """Count a step that the scaler left out, where the scaler noted it: on the device."""
        for found in scaler._found_inf_per_device(optimizer).values():
            self._sums[4].add_(found.to(self._sums.device))

    def read(self) -> Means:
        """Over all ranks; waits for the device."""
        sums = sum_over_ranks(self.sums[SUMMED])
        worst = self.sums[4:6].clone()
        if dist.is_initialized():
            dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        loss, right, samples, broken, low, high, skipped, bad = torch.cat([sums, worst]).tolist()
        samples = max(samples, 1)
        bad_step = _HORIZON - int(bad) if bad else -1
        digest = None if math.isnan(low) else (int(low) + (int(high) << _LOW_BITS)) % DIGEST_RANGE
        return Means(loss / samples, 100 * right / samples, int(broken), int(skipped), bad_step, digest)

    def clear(self, epoch_ends: bool) -> None:
        self.sums[: 4 if epoch_ends else 3].zero_()
        self.sums[6:].zero_()


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, summed over ranks in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor
