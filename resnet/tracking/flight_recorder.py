"""What torch's flight recorder knows of the collective in which a rank hangs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from resnet.rundir.files import write_atomic


def last_collective(file: Path) -> str:
    """Write what the recorder holds into a file, and tell in words of the first collective that has not ended.

    Empty where all have, or nothing is recorded. The recorder keeps the last 2,000 (TORCH_FR_BUFFER_SIZE), NCCL's and
    gloo's apart. Of their fields `retired` tells that one has ended, `state` with NCCL only (torch 2.11, 2.14).
    """
    try:
        # Where the watchdog is made without a process group, torch need not have been loaded.
        from torch._C import _distributed_c10d as recorder

        for name in ("_dump_nccl_trace_json", "_dump_fr_trace_json"):
            dumped: bytes = getattr(recorder, name)(includeCollectives=True, onlyActive=False)
            if entries := json.loads(dumped).get("entries"):
                write_atomic(file, dumped.decode())
                return _described(entries)
    except Exception as error:
        # Whatever it is, the hang has to be told.
        return f" (no word of the flight recorder: {type(error).__name__}: {error})"
    return ""


def _described(entries: list[dict[str, Any]]) -> str:
    waits = (entry for entry in entries if not entry.get("retired") and entry.get("state") != "completed")
    if (entry := next(waits, None)) is None:
        return ""
    size = "x".join(str(size) for size in (entry.get("input_sizes") or [[]])[0])
    return f" in {entry.get('profiling_name')} {entry.get('collective_seq_id')}{f' of {size}' if size else ''}"
