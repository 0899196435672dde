"""The page of a sweep, which the job of its last trial lets be written. Standard library, Python 3.9."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from resnet.rundir.find import is_sweep
from resnet.rundir.sweep.results import has_ended

PAGE_SECONDS = 600
"""One of 500 trials with 990 lines of metrics.jsonl each took 5.5 s."""


def report_sweep(run_dir: Path, python: str | None) -> None:
    """Let a sweep's page be written where this trial of it was the last to end: that one sees the others' ends.

    Of two that end at once each may write the page, which is replaced whole. Trouble with it fails nothing.
    python: what starts the ranks' Python, as the shell takes it: this one may lack what the page needs. None: a job
    of an older version does not say.
    """
    sweep_dir = run_dir.parent
    try:
        if python and is_sweep(sweep_dir) and has_ended(sweep_dir):
            command = ["bash", "-c", f"{python} -m resnet report {shlex.quote(str(sweep_dir))}"]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=PAGE_SECONDS)
            if done.returncode:
                raise ValueError(done.stderr.decode(errors="replace").strip().rpartition("\n")[2])
    except Exception as error:
        print(f"the sweep's page could not be written: {error or type(error).__name__}", file=sys.stderr)
