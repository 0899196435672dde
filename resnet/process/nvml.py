"""What NVIDIA's driver says of a GPU, by its own library, which is there wherever the driver is.

Its functions and constants are those of nvml.h, which NVIDIA keeps compatible over drivers (the output of nvidia-smi it
does not: see there, "backwards compatible").
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

UNCORRECTED, VOLATILE = 1, 0
"""Of ECC errors: those that could not be corrected; those since the driver was loaded."""
SM_CLOCK, GPU_TEMPERATURE = 1, 0
SLOWED = {
    0x08: "slowed down by its hardware (HW slowdown: heat or power)",
    0x40: "slowed down by its hardware for heat (HW thermal slowdown)",
    0x80: "slowed down by the node's power supply (HW power brake)",
}
"""By bit of the reasons (nvmlClocksEventReason...) for which clocks are lower than they might be: those that are no
part of normal work, as the limit of power is. The first may show for a moment, when clocks change."""


class Health(NamedTuple):
    """What the driver says of a GPU; None where it does not say (older GPUs, a virtual one)."""

    ecc_errors: int | None
    """Errors of its memory since the driver was loaded that could not be corrected."""
    remap_pending: bool | None
    """Whether bad rows (or, on older GPUs, pages) of memory wait for a reset of the GPU to be replaced."""
    remap_failed: bool | None
    slowed: list[str]
    celsius: int | None
    sm_mhz: int | None
    most_sm_mhz: int | None


def health(uuid: str) -> Health | None:
    """Of the GPU of that UUID (GPU-...); None where there is no NVML or it does not know the GPU."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        handle = ctypes.c_void_p()
        if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)):
            return None
    except (OSError, AttributeError):
        return None

    def ask(name: str, given: tuple[int, ...] = (), kind: type = ctypes.c_uint, answers: int = 1) -> list[int] | None:
        found = [kind() for _ in range(answers)]
        function = getattr(library, name, None)
        if function is None or function(handle, *given, *map(ctypes.byref, found)):
            return None
        return [answer.value for answer in found]

    def one(name: str, *given: int, kind: type = ctypes.c_uint) -> int | None:
        answer = ask(name, given, kind)
        return answer[0] if answer else None

    rows = ask("nvmlDeviceGetRemappedRows", answers=4)
    pages = one("nvmlDeviceGetRetiredPagesPendingStatus")
    reasons = one("nvmlDeviceGetCurrentClocksThrottleReasons", kind=ctypes.c_ulonglong) or 0
    return Health(
        ecc_errors=one("nvmlDeviceGetTotalEccErrors", UNCORRECTED, VOLATILE, kind=ctypes.c_ulonglong),
        remap_pending=bool(rows[2]) if rows else None if pages is None else bool(pages),
        remap_failed=bool(rows[3]) if rows else None,
        slowed=[words for bit, words in SLOWED.items() if reasons & bit],
        celsius=one("nvmlDeviceGetTemperature", GPU_TEMPERATURE),
        sm_mhz=one("nvmlDeviceGetClockInfo", SM_CLOCK),
        most_sm_mhz=one("nvmlDeviceGetMaxClockInfo", SM_CLOCK),
    )
