"""Which of several ranks tells a mistake."""

from __future__ import annotations

import os
import sys
import time

from resnet.process.environment import is_under_accelerate

PATIENCE = 10.0
"""Seconds in which the first rank of a machine comes to the mistake that another one has made."""


class OfAllRanks(ValueError):
    """A mistake that every rank of the process group raises, and knows that the others do."""


class OfOneRank(ValueError):
    """A mistake that other ranks need not make: whoever raises it tells it."""


def is_told_elsewhere(error: Exception) -> bool:
    """Whether the first rank tells the same mistake.

    Before ranks have met they cannot know: then this waits. A launcher ends all ranks as soon as one has failed, and
    so only the first of each machine is heard, unless it did not fail. A lone process tells all, whatever its
    environment holds.
    """
    launched = is_under_accelerate() or "TORCHELASTIC_RUN_ID" in os.environ
    if isinstance(error, OfOneRank):
        return False
    if isinstance(error, OfAllRanks):
        if os.environ.get("RANK", "0") == "0":
            return False
        if launched:
            # To fail before the first has told it would end that one.
            time.sleep(1)
        return True
    several = os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("LOCAL_RANK", "0") != "0"
    if launched and several and not _have_met():
        time.sleep(PATIENCE)
    return False


def _have_met() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()
