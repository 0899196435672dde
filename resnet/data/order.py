"""The order of the data: which image stands at which position of an epoch.

A pure function of (seed, epoch, position), the same for any number of ranks, workers and restarts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np

from resnet.data.bijection import mix, shuffled
from resnet.data.order_table import table

Kind = Literal["bijection", "table"]
"""How an order comes about: computed at each position, or drawn as a table of the whole epoch, as in older runs."""


def kind_of(facts: Mapping[str, Any]) -> Kind:
    """Of a run, by what its checkpoint or provenance.json says; where neither says anything, that of a new run.

    Raises ValueError for one of a version to come.
    """
    kind = facts.get("order", "table") if facts else "bijection"
    if kind not in get_args(Kind):
        raise ValueError(f"the order of this run's data is of the kind {kind}, which a later version of resnet knows")
    return kind


@dataclass(frozen=True, eq=False)
class Order:
    """The order in which an epoch draws from `labels`, a class index (n,) for each image.

    An epoch's positions are shuffled by `bijection.shuffled`, in time and memory that do not grow with n. With `drawn`
    they are shuffled among the classes' places, which hold each class as often as asked: whole copies of it, and a
    different random part of it every epoch.
    """

    labels: np.ndarray
    seed: int
    batch_size: int
    repeats: int = 1
    drawn: np.ndarray | None = None
    """How often an epoch draws from each class (classes,), see `balanced_counts`; None: each image once."""
    kind: Kind = "bijection"
    _classes: _Classes | None = field(init=False, repr=False, default=None)
    """Made once a run, and shared by the workers that are forked."""

    def __post_init__(self) -> None:
        if self.drawn is not None and self.kind == "bijection":
            object.__setattr__(self, "_classes", _Classes.of(self.labels, self.drawn))

    def __len__(self) -> int:
        """Positions in an epoch."""
        return len(self.labels) if self.drawn is None else int(self.drawn.sum())

    def at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Indices (n,) int64 of the images that stand at some positions (n,) of an epoch."""
        if self.kind == "table":
            return _table(self, epoch)[positions]
        if self.repeats > 1:
            positions = self._distinct(positions)
        places = shuffled(positions, len(self), mix(self.seed, epoch, 0))
        return places if self._classes is None else self._classes.members(places, self.seed, epoch)

    def _distinct(self, positions: np.ndarray) -> np.ndarray:
        """The positions of the order without repeats at which the images of some positions stand.

        Each batch holds batch_size / repeats images (rounded up) `repeats` times over; where repeats does not divide
        batch_size, the last few stand there less often. The copies lie batch_size / repeats apart, so that (as with
        torchvision's RASampler) they meet in a batch, where their gradients are averaged, but not in a micro-batch,
        whose BatchNorm statistics they would narrow.
        """
        distinct = -(-self.batch_size // self.repeats)
        batch, place = np.divmod(positions, self.batch_size)
        return batch * distinct + place % distinct


@dataclass(frozen=True, eq=False)
class _Classes:
    """Where the images of each class are, and how often an epoch draws from it; arrays (classes,) int64."""

    sizes: np.ndarray
    first: np.ndarray
    """Of the class's images among all that are sorted by class."""
    whole: np.ndarray
    """Places of its whole copies."""
    ends: np.ndarray
    """Of its places: one after the last."""
    sorted: np.ndarray | None
    """Images by class, (n,); None: they lie so."""

    @classmethod
    def of(cls, labels: np.ndarray, drawn: np.ndarray) -> _Classes:
        sizes = np.bincount(labels, minlength=len(drawn))
        whole = drawn - drawn % np.maximum(1, sizes)
        by_class = None
        if not (labels[1:] >= labels[:-1]).all():
            # Numbers of 16 bits are sorted six times as fast.
            by_class = np.argsort(labels.astype(np.uint16) if len(drawn) <= 2**16 else labels, kind="stable")
            by_class = by_class.astype(np.int32) if len(labels) <= np.iinfo(np.int32).max else by_class
        return cls(sizes, np.cumsum(sizes) - sizes, whole, np.cumsum(drawn), by_class)

    def members(self, places: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """The images at some places (n,) of an epoch, int64."""
        label = np.searchsorted(self.ends, places, side="right")
        before = np.where(label > 0, self.ends[label - 1], 0)
        place, size, whole = places - before, self.sizes[label], self.whole[label]
        member = place % size
        part = np.flatnonzero(place >= whole)
        keys = mix(seed, epoch, 1 + label[part].astype(np.uint64))
        member[part] = shuffled((place - whole)[part], size[part], keys)
        index = self.first[label] + member
        return index if self.sorted is None else self.sorted[index].astype(np.int64)


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
def _table(order: Order, epoch: int) -> np.ndarray:
    return table(order.labels, order.seed, epoch, order.batch_size, order.repeats, order.drawn)
