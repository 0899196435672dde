"""The order of the data: which image stands at which position of an epoch, and the seed of its augmentation.

Pure functions of (seed, epoch, position), the same for any number of ranks, workers and restarts. They use only the raw
output of NumPy's Philox bit generator, which NumPy promises not to change, unlike `permutation` and `torch.randperm`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

_MASK = 2**64 - 1


@dataclass(frozen=True, eq=False)
class Order:
    """The order in which an epoch draws from `labels`, a class index (n,) for each image."""

    labels: np.ndarray
    seed: int
    batch_size: int
    repeats: int = 1
    drawn: np.ndarray | None = None
    """How often an epoch draws from each class (classes,), see `balanced_counts`; None: each image once."""

    def __len__(self) -> int:
        """Positions in an epoch."""
        return len(self.labels) if self.drawn is None else int(self.drawn.sum())

    def epoch(self, epoch: int) -> np.ndarray:
        """Image indices (positions,) int64 of an epoch; read-only."""
        return _drawn(self, epoch)

    def draw(self, epoch: int) -> np.ndarray:
        pool = np.arange(len(self.labels)) if self.drawn is None else self._balanced(epoch, self.drawn)
        order = pool[_shuffled(len(pool), self.seed, epoch, 0)]
        if self.repeats > 1:
            order = _repeat_in_batches(order, self.batch_size, self.repeats)
        order.flags.writeable = False
        return order

    def _balanced(self, epoch: int, counts: np.ndarray) -> np.ndarray:
        """Each class as often as asked: whole copies, and a different random part of it every epoch."""
        drawn = []
        for label in np.unique(self.labels):
            members = np.flatnonzero(self.labels == label)
            copies, rest = divmod(int(counts[label]), len(members))
            extra = members[_shuffled(len(members), self.seed, epoch, 1 + int(label))[:rest]]
            drawn += [np.tile(members, copies), extra]
        return np.concatenate(drawn)


def balanced_counts(balance: str, sizes: np.ndarray, shares: Mapping[int, float] | None = None) -> np.ndarray | None:
    """How often an epoch draws from each class, int64 (classes,); None: each image once.

    balance: as `data.balance`. sizes: images of each class (classes,). shares: with balance=shares, of an epoch that is
    as long as there are images, by class; the other classes split the rest by their sizes.
    With sqrt a class is drawn in proportion to the square root of its size (as in Kang et al. 2020,
    arXiv:1910.09217, section 3), the largest as often as it has images, so that none is left out.
    """
    if balance == "none":
        return None
    if balance == "oversample":
        return np.where(sizes > 0, sizes.max(), 0)
    if balance == "sqrt":
        return np.maximum(np.round(np.sqrt(sizes * float(sizes.max()))).astype(np.int64), sizes)
    wanted = np.array([(shares or {}).get(label, 0.0) for label in range(len(sizes))])
    others = np.where(wanted == 0, sizes, 0)
    return _whole((wanted + (1 - wanted.sum()) * others / max(1, others.sum())) * sizes.sum())


def _whole(amounts: np.ndarray) -> np.ndarray:
    """Whole numbers of the same sum, each less than 1 away: the largest fractions are rounded up."""
    counts = np.floor(amounts).astype(np.int64)
    missing = round(float(amounts.sum())) - int(counts.sum())
    counts[np.argsort(counts - amounts, kind="stable")[:missing]] += 1
    return counts


@lru_cache(maxsize=2)
def _drawn(order: Order, epoch: int) -> np.ndarray:
    return order.draw(epoch)


def _shuffled(length: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    """A permutation of range(length): the stable argsort of Philox's 64-bit words, keyed by seed, epoch and stream."""
    key = np.array([seed, mix(epoch, stream)], dtype=np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(length), kind="stable")


def _repeat_in_batches(order: np.ndarray, batch_size: int, repeats: int) -> np.ndarray:
    """As many positions as before, each batch holding batch_size / repeats images (rounded up) `repeats` times over.

    Where repeats does not divide batch_size, the last few stand there less often. The copies lie batch_size / repeats
    apart, so that (as with torchvision's RASampler) they meet in a batch, where their gradients are averaged, but not
    in a micro-batch, whose BatchNorm statistics they would narrow.
    """
    distinct = -(-batch_size // repeats)
    batches = -(-len(order) // batch_size)
    drawn = [
        np.tile(order[batch * distinct : (batch + 1) * distinct], repeats)[:batch_size] for batch in range(batches)
    ]
    return np.concatenate(drawn)[: len(order)]


def mix(*numbers: Any) -> Any:
    """One well-mixed 64-bit number from several (the finaliser of SplitMix64, Steele et al. 2014, chained).

    For arrays of np.uint64 among them an array of such.
    """
    state = 0
    for number in numbers:
        state = (state + (number & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state
