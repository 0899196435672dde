"""Stage *further*: CIFAR-10 to 96%, by the same recipe over more epochs and with random erasing."""

from __future__ import annotations

from tests.bench.gpu.learns import train
from tests.bench.gpu.stage import Options, Report, main


def run(options: Options, report: Report) -> None:
    if options.cifar is None:
        report.row("CIFAR-10", left_out="--cifar FOLDER was not given")
        return
    longer = [f"epochs={60 if options.on_gpu else 1}", "augment.random_erasing=0.25"]
    report.attempt("to 96%", lambda: report.row("to 96%", **train(options, "to-96", 96.0, *longer)))


if __name__ == "__main__":
    raise SystemExit(main("further", run))
