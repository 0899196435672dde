"""How many files a process may have open, connections to other ranks among them."""

from __future__ import annotations

import contextlib
import sys

BESIDE_RANKS = 256
"""Files that a rank has open however many there are: about 40, with its data workers' pipes and shared memory more."""
_ENOUGH = 2**16
"""Old programs, which a run may start, close one by one as many as there might be."""


def allow_open_files(ranks: int) -> None:
    """Raise the soft limit to the hard one, as far as it is of use. Raises ValueError where that is too low.

    Rank 0 has a connection to every other; the others have one to it and to a few neighbours.
    """
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    if soft != resource.RLIM_INFINITY and soft < (needed := ranks + BESIDE_RANKS):
        raise ValueError(
            f"{ranks} ranks need {needed} open files a process, and this machine allows {soft} "
            "(the hard limit, `ulimit -Hn`): have it raised (LimitNOFILE= of slurmd, or /etc/security/limits.conf), "
            "or use fewer ranks"
        )
