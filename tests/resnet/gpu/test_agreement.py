import os

import pytest
import torch
import torch.distributed as dist

from resnet.agreement import STOP, ReduceOnDevice
from tests.processes import free_port
from tests.resnet.gpu.support import CUDA, occupy


@pytest.fixture
def nccl(monkeypatch):
    """A group of one rank, which NCCL reduces over as over many."""
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "RANK": 0, "WORLD_SIZE": 1}.items():
        monkeypatch.setitem(os.environ, name, str(value))
    dist.init_process_group("nccl")
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=CUDA)])
def test_the_host_does_not_wait_to_ask_nor_the_answer_for_the_step(nccl, device):
    reduce = ReduceOnDevice(torch.device(device))
    assert reduce(STOP)() == STOP
    torch.cuda.set_sync_debug_mode("error")
    try:
        occupy(300)
        busy = torch.cuda.Event()
        busy.record()
        answer = reduce(STOP - 1)
        assert not busy.query()
        assert answer() == STOP - 1
        assert not busy.query(), "it came while the step still ran"
    finally:
        torch.cuda.set_sync_debug_mode("default")
