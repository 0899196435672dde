"""Exit codes of `train.py`, `launch` and `resnet`."""

from __future__ import annotations

FINISHED = 0
FAILED = 1
MISTAKE = 2
"""The command or the recipe is wrong; nothing was begun."""
STOPPED = 85
"""Stopped with a checkpoint, to be continued."""
INTERRUPTED = 130
"""Ended at once by Ctrl-C."""
BROKEN_PIPE = 141
"""Nobody reads the output any more."""
OWN = (FINISHED, FAILED, MISTAKE, STOPPED, INTERRUPTED)
"""What a trainer leaves with by itself; any other code is that of a process that was killed."""
