"""Where srun puts what ranks print, and how the logs of ranks that were lost come from their nodes.

Only the standard library, and Python 3.9.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet.process.rank_logs import node_folder
from slurm.ends import fates

MOST_LOST = 8
"""Ranks, of those that were lost first, whose logs are brought."""
BRING_SECONDS = 20
_RANK = """\
if [ "$SLURM_PROCID" = 0 ]; then exec >>"$0" 2>&1; shift; exec "$@"; fi
[ -e "$1" ] || mkdir -m 700 "$1" 2>/dev/null
if [ ! -d "$1" ] || [ -L "$1" ] || [ ! -O "$1" ]; then
  echo "$1 on $(hostname) is not this user's own folder" >&2
  exit 1
fi
exec >>"$1/out-$SLURM_PROCID.log" 2>&1
shift; exec "$@"
"""
"""What the first rank prints goes to a file of the run directory, what others do to their own on their nodes."""
_BRING = """\
folder=$1 logs=$2 attempt=$3; shift 3
[ -d "$folder" ] && [ ! -L "$folder" ] && [ -O "$folder" ] || exit 0
for rank; do
  [ ! -f "$folder/out-$rank.log" ] || cat "$folder/out-$rank.log" >>"$attempt/rank-$rank.log"
  [ ! -f "$folder/rank-$rank.log" ] || cat "$folder/rank-$rank.log" >>"$logs/rank-$rank.log"
done
rm -rf "$folder"
"""


def kept(jobs: Mapping[str, Any]) -> str:
    """Whose logs the run directory gets, first or all; a job of an older version does not say, and means all."""
    return jobs.get("rank_logs", "all")


def output(jobs: Mapping[str, Any], run_dir: Path, attempt: int, logs: Path) -> tuple[str, list[str]]:
    """The option of srun, and what stands before each rank's command."""
    if kept(jobs) == "all":
        return f"--output={logs}/rank-%t.log", []
    # Srun opens this one itself; what Slurm has to say of ranks that could not be started goes there, too.
    first = str(logs / "rank-0.log")
    return f"--output={first}", ["sh", "-c", _RANK, first, str(node_folder(run_dir, attempt))]


def bring(
    jobs: Mapping[str, Any], run_dir: Path, attempt: int, logs: Path, where: Sequence[str], lines: Sequence[str]
) -> None:
    """After an attempt that failed: let its nodes bring the logs of the ranks that were lost, and remove all others.

    where: srun's options for one task on each node that still answers. lines: what srun said.
    """
    if kept(jobs) == "all":
        return
    lost = [fate.rank for fate in fates(lines)][:MOST_LOST]
    folder = str(node_folder(run_dir, attempt))
    step = ["srun", "--overlap", "--kill-on-bad-exit=0", *where]
    command = ["sh", "-c", _BRING, "sh", folder, str(run_dir / "logs"), str(logs), *map(str, lost)]
    try:
        subprocess.run([*step, *command], stdin=subprocess.DEVNULL, timeout=BRING_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"the logs of the ranks could not be brought from their nodes: {error}", file=sys.stderr)
