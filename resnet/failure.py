"""What an exception in training means to the user."""

from __future__ import annotations

import errno
from typing import NamedTuple

import torch
import torch.distributed as dist

from recipes.plan import Plan
from resnet.data.arrays import BrokenImage
from resnet.plugins import PluginError, line_in
from resnet.replicas import SilentCorruption
from resnet.trainer import TrainingError


class Failure(NamedTuple):
    kind: str
    """nan, data, oom, disk, lease, nccl, device, sdc (silent data corruption), peer, plugin or crash."""
    reason: str
    unexpected: bool = False
    """Whether the traceback tells more than the reason."""
    of_another: bool = False
    """Whether the fault is another rank's, or it is not known whose."""

    @property
    def own_fault(self) -> bool:
        """False where this rank failed only since another was gone, or wrong."""
        return self.kind != "peer" and not self.of_another


_SIGNS_OF_NO_MEMORY = ("cublas_status_alloc_failed", "cudnn_status_alloc_failed", "cuda error: out of memory")
"""What a GPU's libraries say that need memory beside torch's own."""
_SIGNS_OF_OUR_OWN_ERROR = (
    "device-side assert triggered",
    "invalid argument",
    "invalid configuration",
    "no kernel image",
)
"""What a GPU says where the program is wrong; its other errors (of memory, of the driver) need not come again."""
_SIGNS_OF_A_LOST_PEER = (
    *("connection closed by peer", "connection reset by peer", "connection was likely closed", "broken pipe"),
    *("remote process exited", "connection refused", "read error", "timed out", "timeout"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that a GPU's memory is too small."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS_OF_NO_MEMORY)


def out_of_memory(error: BaseException, micro_batch: int) -> str:
    """What to do about a GPU that is too small for the micro-batch."""
    what = _gist(error).partition(". ")[0]
    return (
        f"out of GPU memory ({what}): try max_batch_per_device={max(2, micro_batch // 2)} (in a new run: a checkpoint "
        "keeps its micro-batch, which BatchNorm normalises over)"
    )


def _gist(error: BaseException) -> str:
    """The one line of an exception's text that tells what happened."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if lines[0].startswith("Caught "):
        # A data worker's, or of the thread that pins memory: what follows the traceback, whose lines are indented.
        begins = [number for number, line in enumerate(lines) if line.endswith("(most recent call last):")]
        lines = [line for line in lines[begins[-1] + 1 if begins else 0 :] if not line.startswith(" ")] or lines
    elif "Last error:" in lines[:-1]:
        # The last word is that of NCCL's library.
        lines = lines[lines.index("Last error:") + 1 :]
    # What comes after it is advice, or a stack of C++; and a line that ends with a colon announces the next.
    return next((line.strip() for line in lines if line.strip() and not line.endswith(":")), lines[0])


def explain(error: BaseException, plan: Plan) -> Failure:
    """Sort an exception of the loop into a failure."""
    failure = _sorted(error, plan)
    if not failure.unexpected or (where := line_in(error, [*plan.recipe.plugins_named().values()])) is None:
        return failure
    return Failure("plugin", f"{where}{failure.reason}")


def _sorted(error: BaseException, plan: Plan) -> Failure:
    text = str(error).strip()
    gist = _gist(error)
    match error:
        case TrainingError():
            return Failure("nan" if "finite" in text else "data", text)
        case PluginError():
            # Raised in a worker it comes with that one's traceback before it.
            return Failure("plugin", text.rpartition("PluginError: ")[2])
        case FloatingPointError():
            return Failure("nan", text)
        case SilentCorruption():
            return Failure("sdc", text, of_another=not error.own)
        case BrokenImage():
            # The same.
            return Failure("data", text.rpartition("BrokenImage: ")[2])
        case RuntimeError() if is_out_of_memory(error):
            return Failure("oom", out_of_memory(error, plan.micro_batch))
        case torch.AcceleratorError():
            kind = "crash" if any(sign in text.lower() for sign in _SIGNS_OF_OUR_OWN_ERROR) else "device"
            return Failure(kind, f"{type(error).__name__}: {gist}", unexpected=True)
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Failure("disk", text)
        case dist.DistError() | RuntimeError() if any(sign in text.lower() for sign in _SIGNS_OF_A_LOST_PEER):
            return Failure("peer", f"lost the other ranks ({gist})")
        case RuntimeError() if "bus error" in text.lower() or "shared memory" in text.lower():
            hint = "enlarge /dev/shm (docker: --shm-size), or set data.num_workers=0"
            return Failure("crash", f"a data worker ran out of shared memory: {hint}")
        case dist.DistError():
            return Failure("nccl", f"{type(error).__name__}: {gist}", unexpected=True)
    return Failure("crash", f"{type(error).__name__}: {gist}", unexpected=True)
