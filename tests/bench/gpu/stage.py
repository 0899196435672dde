"""What all stages share: their options, and the rows that they write as they find them."""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Options:
    """Of every stage."""

    device: str
    quick: bool
    """A third of the time; on a CPU everything in miniature."""
    out: Path
    """Folder that exists."""
    images: Path | None
    """An image folder of JPEGs."""
    cifar: Path | None
    """A folder of CIFAR-10's parquet files."""
    seconds: float
    """After which no more is begun."""

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


class Report:
    """Rows of one stage, in `out`/STAGE.jsonl at once: a stage that is stopped leaves what it has found."""

    def __init__(self, stage: str, options: Options) -> None:
        self._file = (options.out / f"{stage}.jsonl").open("w")
        self._deadline = time.monotonic() + options.seconds

    def row(self, what: str, **values: Any) -> None:
        self._file.write(json.dumps({"what": what, **values}) + "\n")
        self._file.flush()
        print(describe({"what": what, **values}), flush=True)

    @property
    def time_is_over(self) -> bool:
        return time.monotonic() > self._deadline

    def attempt(self, what: str, part: Callable[[], object]) -> None:
        """Do a part of the stage, unless time is over; a row says why where it was not done, and the rest goes on."""
        if self.time_is_over:
            self.row(what, left_out="no time was left")
            return
        try:
            part()
        except Exception as error:
            traceback.print_exc()
            self.row(what, failed=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def describe(row: dict[str, Any]) -> str:
    """A row in one line; lists and tables of it are in the file alone."""
    shown = {name: value for name, value in row.items() if name != "what" and not isinstance(value, (list, dict))}
    return f"{row['what']:44}  " + "  ".join(f"{name} {_short(value)}" for name, value in shown.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main(stage: str, run: Callable[[Options, Report], None], arguments: list[str] | None = None) -> int:
    """Run a stage by its command line, which `python -m tests.bench.gpu` writes."""
    options = Options(**vars(parser(f"python -m tests.bench.gpu.{stage}").parse_args(arguments)))
    options.out.mkdir(parents=True, exist_ok=True)
    # cuDNN keeps the first plan that it finds for a convolution, whichever loop asked: all search, as ours does.
    torch.backends.cudnn.benchmark = options.on_gpu
    run(options, Report(stage, options))
    return 0


def parser(program: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=program)
    made.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: in miniature, to try the bench")
    made.add_argument("--quick", action="store_true", help="in a third of the time")
    made.add_argument("--out", type=Path, default=Path("bench-gpu"), help="folder for everything that is found")
    made.add_argument("--images", type=Path, help="an image folder of JPEGs, for the loader")
    made.add_argument("--cifar", type=Path, help="a folder of CIFAR-10's parquet files, for the accuracy")
    made.add_argument("--seconds", type=float, default=3600.0, help="after which a stage begins nothing more")
    return made
