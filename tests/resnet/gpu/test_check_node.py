"""The start check of a GPU that trains well finds nothing wrong with it."""

import pytest
import torch

from resnet.process.nvml import health
from resnet.tools.check_node import unhealthy, wrong_products
from tests.resnet.gpu.support import CUDA

pytestmark = CUDA


def test_known_products_are_exact_on_tensor_cores():
    device = torch.device("cuda", torch.cuda.current_device())
    assert wrong_products(device, 0.2) == []


def test_the_driver_tells_how_the_gpu_is():
    told = health(f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}")
    if told is None:
        pytest.skip("no NVML here")
    assert told.celsius is not None
    assert 0 < told.celsius < 110
    assert told.most_sm_mhz is not None
    assert told.most_sm_mhz > 300
    assert isinstance(unhealthy(told), list)
