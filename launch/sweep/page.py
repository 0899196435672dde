"""The page that a sweep leaves, for the trials that a `launch` has seen to their end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from resnet.rundir.sweep.results import has_ended


def write_page(sweep_dir: Path, while_it_runs: bool = True) -> None:
    """Write the sweep's page and say where it is. Trouble with it is told, and fails nothing."""
    try:
        if not while_it_runs and not has_ended(sweep_dir):
            return
        from resnet.api import report

        print(f"report: {os.path.relpath(report(sweep_dir))}", flush=True)
    except Exception as error:
        print(f"the sweep's page could not be written: {error or type(error).__name__}", file=sys.stderr, flush=True)
