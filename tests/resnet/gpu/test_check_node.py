"""The start check of a GPU that trains well finds nothing wrong with it."""

import pytest
import torch

from resnet.tools.check_node import _device_and_what_is_wrong, _told, wrong_products
from tests.resnet.gpu.support import CUDA

pytestmark = CUDA


def test_known_products_are_exact_on_tensor_cores():
    device = torch.device("cuda", torch.cuda.current_device())
    assert wrong_products(device, 0.2) == []


def test_the_driver_tells_how_the_gpu_is():
    told = _told(torch.device("cuda", torch.cuda.current_device()))
    if told is None:
        pytest.skip("no NVML here")
    assert told.celsius is not None
    assert 0 < told.celsius < 110
    assert told.most_sm_mhz is not None
    assert told.most_sm_mhz > 300


def test_nothing_is_wrong_with_a_gpu_that_is_free():
    free, whole = torch.cuda.mem_get_info()
    if whole - free > 2e9:
        pytest.skip("others use it")
    facts = {}
    device, bad = _device_and_what_is_wrong(torch.cuda.current_device(), facts)
    assert (device.type, bad) == ("cuda", [])
    assert facts["gpu"]["free_gb"] > 0
