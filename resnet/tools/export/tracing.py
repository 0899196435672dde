"""What torch's exporters are given, and their silence."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

import torch

ANY_BATCH = ({0: torch.export.Dim("N")},)
"""For torch.export: how many images a network is given is not fixed."""


def example(size: int) -> tuple[torch.Tensor]:
    """Images that a network is traced with. Of one alone torch would think that there is never another number."""
    return (torch.zeros(2, 3, size, size),)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters tell of their own parts."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
