import os
from collections.abc import Iterator

import pytest
import torch

from tests.resnet.gpu.support import ON_CUDA

if torch.cuda.is_available():
    # cuBLAS asks for it once in a process, and the first run here need not be the first deterministic one.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(params=["cpu", ON_CUDA])
def device(request) -> str:
    """Where a test trains: here, and on a GPU where there is one."""
    return request.param


@pytest.fixture
def exact_float32() -> Iterator[None]:
    """float32 as a CPU has it, instead of the 10 bits of mantissa that convolutions on a GPU round to by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
