"""How often `checkpoint.every=auto` saves."""

from __future__ import annotations

import math

HOURS_PER_FAULT = 50_000
"""Of one device, between faults that end a run: 419 unexpected interruptions in 54 days on 16,384 GPUs are one in
50,700 hours of a GPU (Llama 3, arXiv:2407.21783, section 3.3.4)."""
OFTEN = 30.0
"""Seconds: to start again takes about as long, so that more frequent saves would win little."""
FREE, MOST, WRITING = 0.001, 0.01, 0.1
"""Of the time: what saves may cost without a reason, what they may cost at all, and how much may be spent writing."""


def seconds_between_faults(ranks: int) -> float:
    return 3600.0 * HOURS_PER_FAULT / ranks


def interval(stall_s: float, writing_s: float, ranks: int) -> float:
    """Seconds from one checkpoint to the next.

    stall_s: for how long a save holds up training. writing_s: for how long it then writes, beside training.

    What saves cost and what is trained anew after a fault are together the least at sqrt(2 * stall * time between
    faults) (Young 1974, Daly 2006). Runs also end otherwise, by a signal that came too late or a time limit, which
    nobody has a rate of: where it costs 0.1% of the time or less, they are saved more often, down to each 30 s. Saves
    cost 1% at most, whatever the faults, and writing leaves the file system to others for nine tenths of the time.
    """
    best = math.sqrt(2 * stall_s * seconds_between_faults(ranks))
    return max(min(best, stall_s / FREE), OFTEN, stall_s / MOST, writing_s / WRITING)


def told(ranks: int) -> str:
    """The rule in words, for a number of devices."""
    examples = [f"each {interval(stall, 0, ranks):.0f} s where it takes {1e3 * stall:g} ms" for stall in (0.03, 0.1, 1)]
    return (
        f"by what a save is measured to cost: {', '.join(examples)} (one fault in "
        f"{seconds_between_faults(ranks) / 3600:,.0f} hours assumed)"
    )
