"""`resnet report`: which page the runs that were named make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resnet.rundir.find import ROOT, find_run, find_sweep


def write_pages(names: Sequence[str], root: str | Path = ROOT, out: Path | None = None) -> Path:
    """Write the report of a run or of a sweep, or the page that compares several runs, and return its path.

    names: of runs or of one sweep, or their paths. out: of the page that compares; None: comparison.html by the runs.
    Raises ValueError for names that are not there, and files that cannot be read or written.
    """
    sweeps = [found for name in names if (found := find_sweep(name, root))]
    if sweeps and len(names) > 1:
        raise ValueError(f"{sweeps[0]} is a sweep: report it alone, or name its trials, as in {sweeps[0]}/*")
    run_dirs = [] if sweeps else list(dict.fromkeys(find_run(name, root) for name in names))
    if len(run_dirs) > 1:
        from resnet.tools.board.comparison import write_comparison

        return write_comparison(run_dirs, out)
    if out is not None:
        raise ValueError("--out is of the page that compares several runs; a run or a sweep has its own report.html")
    if sweeps:
        from resnet.tools.board.sweep import write_sweep_report

        return write_sweep_report(sweeps[0])
    from resnet.tools.report.report import write_report

    return write_report(run_dirs[0])
