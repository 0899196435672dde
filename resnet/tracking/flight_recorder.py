"""What NCCL's flight recorder of torch knows of the collective in which a rank hangs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet.rundir.files import write_atomic


def last_collective(file: Path) -> str:
    """Write what the recorder holds into a file, and tell of the last collective in words; empty without NCCL.

    The recorder keeps the last 2,000 (TORCH_FR_BUFFER_SIZE), whose fields torch/csrc/distributed/c10d/
    FlightRecorder.hpp names; `state` is scheduled, started or completed.
    """
    try:
        from torch._C import _distributed_c10d

        dump: Callable[..., bytes] = _distributed_c10d._dump_nccl_trace_json  # pyright: ignore[reportAttributeAccessIssue]
        dumped = dump(includeCollectives=True, onlyActive=False)
        entries: list[dict[str, Any]] = json.loads(dumped).get("entries") or []
        if not entries:
            return ""
        write_atomic(file, dumped.decode())
        waits = [entry for entry in entries if entry.get("state") != "completed"]
        entry = (waits or entries[-1:])[0]
        sizes = "x".join(str(size) for size in entry.get("input_sizes", [[]])[0])
        name, number = entry.get("profiling_name", "?"), entry.get("collective_seq_id", "?")
        return f" in {name} number {number} ({entry.get('state')}{', of ' + sizes if sizes else ''}); NCCL: {file}"
    except (ImportError, AttributeError):
        return ""
    except Exception as error:
        # Whatever it is, the hang has to be told.
        return f" (the flight recorder: {type(error).__name__}: {error})"
