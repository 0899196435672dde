"""Synthetic images: noise with a trace of its class, computed from the index alone."""

from __future__ import annotations

import numpy as np
import torch

from recipes.schema.data import SyntheticData


class Synthetic:
    """A source (see `source.Source`) of square images made when they are read; `first` numbers the first of them."""

    def __init__(self, samples: int, classes: int, size: int, first: int = 0) -> None:
        self._size, self._first = size, first
        self.labels = (first + np.arange(samples, dtype=np.int64)) % classes
        self.classes = [str(number) for number in range(classes)]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> torch.Tensor:
        pattern = _words(2, int(self.labels[index]), 3 * 4 * 4)[: 3 * 4 * 4].reshape(3, 4, 4)
        pattern = np.concatenate([pattern, pattern[..., ::-1]], axis=2)  # a flipped image keeps its class
        cell = -(-self._size // 4), -(-self._size // 8)
        trace = pattern.repeat(cell[0], axis=1).repeat(cell[1], axis=2)[:, : self._size, : self._size]
        values = 3 * self._size * self._size
        noise = _words(1, self._first + index, values)[:values].reshape(3, self._size, self._size)
        return torch.from_numpy(noise // 2 + trace // 2)

    def describe(self, index: int) -> str:
        return f"synthetic image {self._first + index}"


def open_synthetic(data: SyntheticData) -> tuple[Synthetic, Synthetic]:
    """Training images, and a quarter as many others for validation."""
    train = Synthetic(data.samples, data.classes, data.size)
    return train, Synthetic(max(1, data.samples // 4), data.classes, data.size, first=data.samples)


def _words(stream: int, number: int, count: int) -> np.ndarray:
    """At least `count` random bytes, the same for the same stream and number."""
    return np.random.Philox(key=np.array([stream, number], dtype=np.uint64)).random_raw(-(-count // 8)).view(np.uint8)
