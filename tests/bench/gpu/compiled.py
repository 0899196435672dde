"""Stage *compiled*: images a second with torch.compile, beside the bound of fused kernels."""

from __future__ import annotations

import dataclasses
from functools import partial

from tests.bench.gpu.here import copy_bandwidth
from tests.bench.gpu.speed import OURS, Case, large, measure, name_of, small
from tests.bench.gpu.stage import Options, Report, main


def run(options: Options, report: Report) -> None:
    bandwidth = copy_bandwidth(options)
    for setting in (large(options), small(options)):
        case = Case(name_of(setting, "compiled"), dataclasses.replace(setting, compile=True), OURS)
        report.attempt(case.name, partial(measure, case, bandwidth, options, report))


if __name__ == "__main__":
    raise SystemExit(main("compiled", run))
