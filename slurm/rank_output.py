"""Where srun puts what ranks print, and how the logs of ranks that were lost come from their nodes.

Only the standard library, and Python 3.9.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet.process.rank_logs import on_node, output_name
from slurm.ends import fates

MOST_LOST = 8
"""Ranks, of those that were lost first, whose logs are brought."""
BRING_SECONDS = 20
_FIRST = '[ "$SLURM_PROCID" != 0 ] || exec >>"$0" 2>&1; exec "$@"'
"""What the first rank prints goes to a file of the run directory."""
_BRING = """\
prefix=$1 logs=$2 attempt=$3; shift 3
for rank; do
  [ ! -f "${prefix}out-$rank.log" ] || cat "${prefix}out-$rank.log" >>"$attempt/rank-$rank.log"
  [ ! -f "${prefix}rank-$rank.log" ] || cat "${prefix}rank-$rank.log" >>"$logs/rank-$rank.log"
done
rm -f "$prefix"*
"""


def kept(jobs: Mapping[str, Any]) -> str:
    """Whose logs the run directory gets, first or all; a job of an older version does not say, and means all."""
    return jobs.get("rank_logs", "all")


def output(jobs: Mapping[str, Any], run_dir: Path, attempt: int, logs: Path) -> tuple[str, list[str]]:
    """The option of srun, and what stands before each rank's command."""
    if kept(jobs) == "all":
        return f"--output={logs}/rank-%t.log", []
    return f"--output={on_node(run_dir, attempt, output_name('%t'))}", ["sh", "-c", _FIRST, str(logs / "rank-0.log")]


def bring(
    jobs: Mapping[str, Any], run_dir: Path, attempt: int, logs: Path, where: Sequence[str], lines: Sequence[str]
) -> None:
    """After an attempt that failed: let its nodes bring the logs of the ranks that were lost, and remove all others.

    where: srun's options for one task on each node that still answers. lines: what srun said.
    """
    if kept(jobs) == "all":
        return
    # The first one's, too: what went wrong before it began is not yet in its log.
    lost = dict.fromkeys([*[fate.rank for fate in fates(lines)][:MOST_LOST], 0])
    prefix, folder = str(on_node(run_dir, attempt, "")), str(run_dir / "logs")
    step = ["srun", "--overlap", "--kill-on-bad-exit=0", *where]
    command = ["sh", "-c", _BRING, "sh", prefix, folder, str(logs), *map(str, lost)]
    try:
        subprocess.run([*step, *command], stdin=subprocess.DEVNULL, timeout=BRING_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"the logs of the ranks could not be brought from their nodes: {error}", file=sys.stderr)
