"""Stage *what is here*: the card, its driver and software, and how fast it copies and multiplies."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import torch

from tests.bench.gpu.stage import Options, Report, main, synchronize
from tests.bench.machine import facts


def run(options: Options, report: Report) -> None:
    report.row("machine", **{name: value for name, value in facts().items() if name != "command"})
    report.attempt("card", lambda: report.row("card", **card()) if options.on_gpu else None)
    report.attempt("copy", lambda: report.row("copy", terabytes_per_second=copy_bandwidth(options) / 1e12))
    report.attempt("multiply", lambda: report.row("multiply bf16", teraflops=matrix_rate(options) / 1e12))


def card() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    wanted = "driver_version,clocks.max.sm,clocks.sm,power.limit,pcie.link.gen.current,pcie.link.width.current"
    said = subprocess.run(
        ["nvidia-smi", f"--query-gpu={wanted}", "--format=csv,noheader"], capture_output=True, text=True
    )
    return {
        "name": properties.name,
        "memory_gb": properties.total_memory / 1e9,
        "processors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **dict(zip(wanted.split(","), [word.strip() for word in said.stdout.split(",")], strict=False)),
    }


def copy_bandwidth(options: Options) -> float:
    """Bytes a second, read and written ones both counted, of copies of a large tensor on the device."""
    source = torch.empty(2**30 if options.on_gpu else 2**26, dtype=torch.uint8, device=options.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _seconds(lambda: target.copy_(source), options)


def matrix_rate(options: Options) -> float:
    """Operations a second, a multiplication and an addition being two, of bf16 matrix products."""
    size = 8192 if options.on_gpu else 512
    first, second = (torch.randn(size, size, device=options.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: first @ second, options)


def _seconds(act: Any, options: Options) -> float:
    """The least of five turns of ten."""
    turns = []
    for _ in range(6):
        synchronize(options.device)
        start = time.perf_counter()
        for _ in range(10):
            act()
        synchronize(options.device)
        turns.append((time.perf_counter() - start) / 10)
    return min(turns[1:])


if __name__ == "__main__":
    raise SystemExit(main("here", run))
