"""What all sources of labelled images have in common."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch


class Source(Protocol):
    """Labelled images by index. Small to pickle or fork into a worker: what is per image lies in arrays."""

    labels: np.ndarray
    """Class indices (n,) int64."""
    classes: list[str]
    """Names of the classes."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes | torch.Tensor:
        """An image: the bytes of its file, or a uint8 tensor (3, H, W), of `Banded` (C, H, W).

        Raises OSError or arrays.BrokenImage.
        """
        ...

    def describe(self, index: int) -> str:
        """The image's file or row, for messages."""
        ...


def targets_of(source: Source) -> np.ndarray | None:
    """float32 (n, classes) where images have several labels, of which `labels` has one; None: they have one each."""
    return getattr(source, "targets", None)
