"""How many files a process may have open, connections to other ranks among them."""

from __future__ import annotations

import contextlib
import socket
import sys

from resnet.process.mistakes import OfOneRank

BESIDE_RANKS = 256
"""Files that a rank has open however many there are: about 40, with its data workers' pipes and shared memory more,
and connections to a few neighbours (gloo: the logarithm of the number of ranks)."""
_ENOUGH = 2**16
"""Old programs, which a run may start, close one by one as many as there might be."""


def allow_open_files(ranks: int, rank: int) -> None:
    """Raise the soft limit to the hard one, as far as it is of use. Raises ValueError where that is too low.

    Rank 0 has a connection to every other; the others have one to it and to a few neighbours.
    """
    needed, whose = (ranks, f"rank 0 of {ranks} ranks needs") if rank == 0 else (0, f"rank {rank} needs")
    needed += BESIDE_RANKS
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    if soft != resource.RLIM_INFINITY and soft < needed:
        fewer = ", or use fewer ranks" if rank == 0 else ""
        raise OfOneRank(
            f"{whose} {needed} open files, and {socket.gethostname()} allows {soft} (the hard limit, `ulimit -Hn`): "
            f"have it raised (LimitNOFILE= of slurmd, or /etc/security/limits.conf){fewer}"
        )
