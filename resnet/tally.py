"""What an evaluation counts, on the device until it is read: nothing here makes the host wait except `read`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from resnet.metrics import UNIT, sum_over_ranks

BINS = 15
"""Bins of equal width that confidences are sorted into (Guo et al. 2017, arXiv:1706.04599)."""
MISTAKES = 32
"""Most confident wrong images that are kept."""
CONFUSED = 50
"""Most frequent pairs of true and predicted class that are told."""

_FINE = 2.0**30
"""Sums of confidences are of whole multiples of 1 / _FINE, as those of losses are of 1 / UNIT."""
_LOW = 2**32


@dataclass(frozen=True)
class Mistake:
    """An image that a network takes for another class."""

    index: int
    """In the source that was evaluated."""
    true: int
    predicted: int
    probability: float
    """That the network gives to the predicted class."""
    probability_of_true: float


def described(mistakes: Iterable[Mistake], describe: Callable[[int], str]) -> list[dict[str, Any]]:
    """Mistakes as JSON takes them. describe: an image's file or row, by its index."""
    return [{**asdict(mistake), "image": describe(mistake.index)} for mistake in mistakes]


class Tally:
    """Counts over an evaluation, of this rank; the same whatever the number of ranks, to the last bit."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.top5 = torch.zeros((), dtype=torch.int64, device=device)
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
        """Images of class [row] taken for class [column]."""
        self._bins = torch.zeros(BINS, 3, dtype=torch.int64, device=device)
        """Images, right ones, and confidences in units of 1 / _FINE."""
        self._worst = torch.full((MISTAKES,), -1, dtype=torch.int64, device=device)
        """Wrong images, as `_keys` writes them; -1 for none."""
        self._cells = torch.zeros(MISTAKES, dtype=torch.int64, device=device)
        self._true = torch.zeros(MISTAKES, dtype=torch.float32, device=device)
        self.several_labels = False
        """Whether an image has several labels, so that none is its true class."""

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, scores: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Count a batch.

        loss: summed over the images; logits, and scores as probabilities: (N, C); labels and the images' indices: (N,).
        """
        classes = len(self.confusion)
        self.loss += (loss.double() * UNIT).round() / UNIT
        best = logits.topk(min(5, classes), dim=1).indices
        self.top5 += (best == labels[:, None]).sum()
        predicted = best[:, 0]
        cells = labels * classes + predicted
        self.confusion.view(-1).index_add_(0, cells, torch.ones_like(cells))
        confidence = scores.gather(1, predicted[:, None])[:, 0].float()
        right = predicted == labels
        self._add_calibration(confidence, right)
        self._add_mistakes(confidence, right, cells, scores.gather(1, labels[:, None])[:, 0].float(), indices)

    def _add_calibration(self, confidence: Tensor, right: Tensor) -> None:
        exact = confidence.double().nan_to_num(0)
        # Bin i holds what is above i / BINS and at most (i + 1) / BINS.
        bins = ((exact * BINS).ceil().long() - 1).clamp_(0, BINS - 1)
        counted = torch.stack([torch.ones_like(bins), right.long(), (exact * _FINE).round().long()], dim=1)
        self._bins.index_add_(0, bins, counted)

    def _add_mistakes(self, confidence: Tensor, right: Tensor, cells: Tensor, of_true: Tensor, indices: Tensor) -> None:
        keys = torch.cat([self._worst, torch.where(right, -1, _keys(confidence, indices))])
        self._worst, kept = keys.topk(MISTAKES)
        self._cells = torch.cat([self._cells, cells])[kept]
        self._true = torch.cat([self._true, of_true])[kept]

    def read(self, over_ranks: bool = True) -> dict[str, Any]:
        """What was counted, over all ranks (or of this one alone); waits for the device. To be called once.

        loss (mean), samples, the confusion matrix on the CPU; in percent top1, top5 and ece, the expected calibration
        error (Naeini et al. 2015; Guo et al. 2017); `calibration`: images of each bin, their mean confidence and
        accuracy; `confused`: the most frequent [true, predicted, images] that are wrong; `mistakes`: the most confident
        wrong images. Of images with several labels there are no such matrix, ece, calibration and confused.
        """
        counts = self.confusion, self.loss, self.top5, self._bins
        if over_ranks:
            counts = [sum_over_ranks(tensor) for tensor in counts]
        confusion, loss, top5, bins = (tensor.cpu() for tensor in counts)
        samples = int(confusion.sum())
        calibration = _calibration(bins)
        result = {
            "loss": loss.item() / max(samples, 1),
            "top1": 100 * int(confusion.diagonal().sum()) / max(samples, 1),
            "top5": 100 * int(top5) / max(samples, 1),
            "samples": samples,
            "confusion": confusion,
            "ece": sum(n * abs(a - c) for n, c, a in calibration if n) / max(samples, 1),
            "calibration": [
                {"samples": n, "confidence": c if n else None, "accuracy": a if n else None} for n, c, a in calibration
            ],
            "confused": _confused(confusion),
            "mistakes": self._mistakes(over_ranks),
        }
        of_one_class = {"confusion": None, "ece": None, "calibration": [], "confused": []}
        return result | of_one_class if self.several_labels else result

    def _mistakes(self, over_ranks: bool) -> list[Mistake]:
        mine = torch.stack([self._worst, self._cells, self._true.view(torch.int32).long()])
        ranks = [mine]
        if over_ranks and dist.is_initialized():
            ranks = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
            dist.all_gather(ranks, mine)
        keys, cells, of_true = torch.cat(ranks, dim=1).cpu()
        keys, kept = keys.topk(MISTAKES)
        probabilities = (keys >> 32).int().view(torch.float32).tolist()
        columns = (keys.tolist(), cells[kept].tolist(), probabilities, of_true[kept].int().view(torch.float32).tolist())
        classes = len(self.confusion)
        return [
            Mistake(_LOW - 1 - key % _LOW, cell // classes, cell % classes, probability, probability_of_true)
            for key, cell, probability, probability_of_true in zip(*columns, strict=True)
            if key >= 0
        ]


def _keys(confidence: Tensor, indices: Tensor) -> Tensor:
    """Numbers that order images by confidence (float32, 0 or more), then by index, the lower index being larger."""
    # The bits of a float that is not negative, read as an integer, order as the float does.
    return (confidence.contiguous().view(torch.int32).long() << 32) + (_LOW - 1 - indices)


def _calibration(bins: Tensor) -> list[tuple[int, float, float]]:
    """Images, mean confidence and accuracy (percent) of each bin."""
    return [
        (samples, 100 * confidence / _FINE / max(samples, 1), 100 * right / max(samples, 1))
        for samples, right, confidence in bins.tolist()
    ]


def _confused(confusion: Tensor) -> list[list[int]]:
    """The pairs of classes taken for one another most often: [true, predicted, images], equal ones by their numbers."""
    wrong = confusion.clone().fill_diagonal_(0)
    pairs = wrong.nonzero()
    counts = wrong[pairs[:, 0], pairs[:, 1]]
    order = counts.argsort(descending=True, stable=True)[:CONFUSED]
    return torch.cat([pairs, counts[:, None]], dim=1)[order].tolist()
