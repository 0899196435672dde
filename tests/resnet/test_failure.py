"""What an exception means to the user, by the texts that PyTorch and its libraries raise."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from resnet.failure import explain

ADVICE = (
    "\nSearch for `cudaErrorX' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more "
    "information.\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace "
    "below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with "
    "`TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)
NCCL = (
    "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.cpp:77, unhandled cuda error (run with NCCL_DEBUG=INFO "
    "for details), NCCL version 2.27.5\nncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda "
    "failure 'invalid argument'"
)
STORE = (
    "[3] store->get('0') got error: Connection reset by peer\nException raised from recvBytes at ../torch/csrc/"
    "distributed/c10d/Utils.hpp:667 (most recent call first):\nframe #0: c10::Error::Error(c10::SourceLocation)"
)
PINNING = (
    "Caught AcceleratorError in pin memory thread for device 0.\nOriginal Traceback (most recent call last):\n  File "
    '"pin_memory.py", line 44, in do_one_step\n    data = pin_memory(data, device)\n'
)
WORKER = (
    'Caught KeyError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File "a.py", '
    "line 1, in read\n    return images[index]\nKeyError: 'image'\n"
)


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (
            torch.AcceleratorError("CUDA error: device-side assert triggered" + ADVICE),
            "crash",
            "AcceleratorError: CUDA error: device-side assert triggered",
        ),
        # Not that of another rank, which this one only waited for.
        (
            torch.AcceleratorError("CUDA error: the launch timed out and was terminated" + ADVICE),
            "device",
            "AcceleratorError: CUDA error: the launch timed out and was terminated",
        ),
        (
            torch.AcceleratorError("CUDA error: out of memory" + ADVICE),
            "oom",
            "out of GPU memory (CUDA error: out of memory): try max_batch_per_device=4 ",
        ),
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.1 GiB"),
            "oom",
            "out of GPU memory (CUDA out of memory): try max_batch_per_device=4 ",
        ),
        (dist.DistBackendError(NCCL), "nccl", "DistBackendError: Cuda failure 'invalid argument'"),
        (
            dist.DistNetworkError(STORE),
            "peer",
            "lost the other ranks ([3] store->get('0') got error: Connection reset by peer)",
        ),
        (
            dist.DistBackendError(NCCL.partition("Cuda")[0]),
            "nccl",
            "DistBackendError: NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.cpp:77, unhandled cuda error",
        ),
        (
            torch.AcceleratorError(
                PINNING + "torch.AcceleratorError: CUDA error: device-side assert triggered" + ADVICE
            ),
            "crash",
            "AcceleratorError: torch.AcceleratorError: CUDA error: device-side assert triggered",
        ),
        (
            torch.cuda.OutOfMemoryError(PINNING + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate"),
            "oom",
            "out of GPU memory (torch.OutOfMemoryError: CUDA out of memory): try max_batch_per_device=4 ",
        ),
        (
            RuntimeError("backend='inductor' raised:\nRuntimeError: Cannot find a working triton\n\nSet TORCH_LOGS"),
            "crash",
            "RuntimeError: RuntimeError: Cannot find a working triton",
        ),
        (KeyError(), "crash", "KeyError: KeyError"),
        (RuntimeError(WORKER), "crash", "RuntimeError: KeyError: 'image'"),
        (OSError(28, "No space left on device"), "disk", "[Errno 28] No space left on device"),
    ],
)
def test_the_reason_is_the_line_that_tells_what_happened(error, kind, reason):
    found = explain(error, SimpleNamespace(micro_batch=8, recipe=SimpleNamespace(plugins_named=dict)))
    assert found.kind == kind
    assert found.reason.startswith(reason)
    assert "\n" not in found.reason
    assert found.own_fault == (kind != "peer")
