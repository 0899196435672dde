"""A keyed shuffle of any number of things, computed for a few of them at a time, and the numbers that key it."""

from __future__ import annotations

from typing import Any

import numpy as np

_MASK = 2**64 - 1
_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)
_EXTRA_ROUNDS = 24


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


def shuffled(places: np.ndarray, length: int | np.ndarray, key: int | np.ndarray) -> np.ndarray:
    """What stands at some places of a shuffle of range(length), int64 (n,).

    places: (n,), each below `length`. length, key: one for all, or of each place its own (n,), up to 2**63 and 2**64.

    The swap-or-not shuffle of Hoang, Morris and Rogaway (2012, doi:10.1007/978-3-642-32009-5_1): each round pairs x
    with k - x modulo `length`, by a k of its own, and swaps the pair or not by a bit drawn from the larger of the two.
    A Feistel network with cycle walking (Mitchell et al. 2021, arXiv:2106.06161) takes a third of its time, which is
    well below what the decoding of one image takes either way; but this one works on any length as it stands, so that
    a whole batch takes the same steps, and it is a good shuffle of two or ten things, too, of which a Feistel network
    makes few of the orders. After r rounds two neighbours are still side by side with a chance of 2**-r: of all pairs
    that leaves 2**-24 expected.

    Arithmetic of 64-bit integers alone, modulo 2**64: the same on every machine and with every NumPy.
    """
    lengths = np.atleast_1d(np.asarray(length, dtype=np.uint64))
    rounds = _EXTRA_ROUNDS + int(lengths.max(initial=0)).bit_length()
    drawn = mix(key, np.arange(2 * rounds, dtype=np.uint64)[:, None])
    sums, multipliers = drawn[:rounds] % lengths, drawn[rounds:] | np.uint64(1)
    here = np.array(places, dtype=np.uint64)
    there, bits, swap = np.empty_like(here), np.empty_like(here), np.empty(here.shape, dtype=bool)
    for total, multiplier in zip(sums, multipliers, strict=True):
        np.subtract(total, here, out=there)
        # Where that was below 0 it has wrapped to a large number, which the length brings back.
        np.add(there, lengths, out=bits)
        np.minimum(there, bits, out=there)
        np.maximum(there, here, out=bits)
        bits *= multiplier
        bits ^= bits >> _HALF
        bits *= _MULTIPLIER
        np.less(bits.view(np.int64), 0, out=swap)
        np.copyto(here, there, where=swap)
    return here.view(np.int64)
