"""The order of the data as runs began with before version 0.2: an epoch's whole table, kept for those that go on."""

from __future__ import annotations

import numpy as np

from resnet.data.bijection import mix


def table(
    labels: np.ndarray, seed: int, epoch: int, batch_size: int, repeats: int, drawn: np.ndarray | None
) -> np.ndarray:
    """Image indices (positions,) int64 of an epoch; the arguments are as of `resnet.data.order.Order`.

    It uses only the raw output of NumPy's Philox bit generator, which NumPy promises not to change, unlike
    `permutation` and `torch.randperm`.
    """
    pool = np.arange(len(labels)) if drawn is None else _balanced(labels, seed, epoch, drawn)
    order = pool[_shuffled(len(pool), seed, epoch, 0)]
    return order if repeats == 1 else _repeat_in_batches(order, batch_size, repeats)


def _balanced(labels: np.ndarray, seed: int, epoch: int, counts: np.ndarray) -> np.ndarray:
    drawn = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        copies, rest = divmod(int(counts[label]), len(members))
        extra = members[_shuffled(len(members), seed, epoch, 1 + int(label))[:rest]]
        drawn += [np.tile(members, copies), extra]
    return np.concatenate(drawn)


def _shuffled(length: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    """A permutation of range(length): the stable argsort of Philox's 64-bit words, keyed by seed, epoch and stream."""
    key = np.array([seed, mix(epoch, stream)], dtype=np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(length), kind="stable")


def _repeat_in_batches(order: np.ndarray, batch_size: int, repeats: int) -> np.ndarray:
    distinct = -(-batch_size // repeats)
    batches = -(-len(order) // batch_size)
    drawn = [
        np.tile(order[batch * distinct : (batch + 1) * distinct], repeats)[:batch_size] for batch in range(batches)
    ]
    return np.concatenate(drawn)[: len(order)]
