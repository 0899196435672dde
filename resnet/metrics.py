"""What is counted, on the device until someone asks for it: nothing here makes the host wait except `read`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist

WINDOW = 6
"""Numbers in a window."""
_HORIZON = 2**52
"""Above any step; HORIZON - step is largest for the earliest step, so that MAX over ranks finds it."""


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
    """First step whose loss was not finite; -1 for none."""


class Window:
    """Sums over the steps since the last line of the log, of this rank."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(WINDOW, dtype=torch.float64, device=device)
        """Loss, right, samples, broken images of the epoch, skipped steps, HORIZON - the first bad step (0: none)."""

    def add(self, step: int, loss: torch.Tensor, right: torch.Tensor, samples: int, broken: int) -> None:
        """loss: mean over `samples` images; right: how many of them the network got right."""
        loss = loss.detach().double()
        self.sums[0].add_(loss, alpha=samples)
        self.sums[1].add_(right)
        self.sums[2].add_(samples)
        if broken:
            self.sums[3].add_(broken)
        self.sums[5].masked_fill_((self.sums[5] == 0) & ~torch.isfinite(loss), _HORIZON - step)

    def add_skipped(self, scaler: Any, optimizer: torch.optim.Optimizer) -> None:
        """Count a step that the scaler left out, where the scaler noted it: on the device."""
        for found in scaler._found_inf_per_device(optimizer).values():
            self.sums[4].add_(found.to(self.sums.device))

    def read(self) -> Means:
        """Over all ranks; waits for the device."""
        sums = sum_over_ranks(self.sums[:4].clone())
        worst = self.sums[4:].clone()
        if dist.is_initialized():
            dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        loss, right, samples, broken, skipped, bad = torch.cat([sums, worst]).tolist()
        samples = max(samples, 1)
        bad_step = _HORIZON - int(bad) if bad else -1
        return Means(loss / samples, 100 * right / samples, int(broken), int(skipped), bad_step)

    def clear(self, epoch_ends: bool) -> None:
        self.sums[: 4 if epoch_ends else 3].zero_()


class Tally:
    """Counts over an evaluation, of this rank."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.top5 = torch.zeros((), dtype=torch.int64, device=device)
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
        """Images of class [row] taken for class [column]."""

    def add(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """loss: summed over the images; logits (N, C); labels (N,)."""
        classes = len(self.confusion)
        self.loss += loss
        best = logits.topk(min(5, classes), dim=1).indices
        self.top5 += (best == labels[:, None]).sum()
        cells = labels * classes + best[:, 0]
        self.confusion.view(-1).index_add_(0, cells, torch.ones_like(cells))

    def read(self) -> dict[str, Any]:
        """Over all ranks: loss (mean), top1 and top5 in percent, samples, and the confusion matrix on the CPU."""
        confusion = sum_over_ranks(self.confusion).cpu()
        samples = int(confusion.sum())
        return {
            "loss": sum_over_ranks(self.loss).item() / max(samples, 1),
            "top1": 100 * int(confusion.diagonal().sum()) / max(samples, 1),
            "top5": 100 * int(sum_over_ranks(self.top5)) / max(samples, 1),
            "samples": samples,
            "confusion": confusion,
        }


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, summed over ranks in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor
