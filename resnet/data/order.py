"""The order of the data: which image stands at which position of an epoch, and the seed of its augmentation.

Pure functions of (seed, epoch, position), the same for any number of ranks, workers and restarts. They use only the raw
output of NumPy's Philox bit generator, which NumPy promises not to change, unlike `permutation` and `torch.randperm`.
"""

from __future__ import annotations

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
    oversample: bool = False

    def __len__(self) -> int:
        """Positions in an epoch."""
        if not self.oversample:
            return len(self.labels)
        counts = np.bincount(self.labels)
        return int(counts.max() * np.count_nonzero(counts))

    def epoch(self, epoch: int) -> np.ndarray:
        """Image indices (positions,) int64 of an epoch; read-only."""
        return _drawn(self, epoch)

    def draw(self, epoch: int) -> np.ndarray:
        pool = self._oversampled(epoch) if self.oversample else np.arange(len(self.labels))
        order = pool[_shuffled(len(pool), self.seed, epoch, 0)]
        if self.repeats > 1:
            order = _repeat_in_batches(order, self.batch_size, self.repeats)
        order.flags.writeable = False
        return order

    def _oversampled(self, epoch: int) -> np.ndarray:
        """Each class as often as the largest: whole copies, and a different random part of it every epoch."""
        largest = int(np.bincount(self.labels).max())
        drawn = []
        for label in np.unique(self.labels):
            members = np.flatnonzero(self.labels == label)
            copies, rest = divmod(largest, len(members))
            extra = members[_shuffled(len(members), self.seed, epoch, 1 + int(label))[:rest]]
            drawn += [np.tile(members, copies), extra]
        return np.concatenate(drawn)


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
