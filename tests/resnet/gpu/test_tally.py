"""What an evaluation counts on a GPU is what it counts on a CPU, and the host never waits for it."""

import pytest
import torch

from resnet.tally import Tally
from tests.resnet.gpu.support import CUDA

pytestmark = CUDA


def test_counting_on_a_gpu_waits_for_nothing_and_finds_the_same():
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 1000, generator=random)
    labels = torch.where(torch.rand(500, generator=random) < 0.5, logits.argmax(1), torch.arange(500))
    scores, results = logits.softmax(1), []
    for device in (torch.device("cpu"), torch.device("cuda")):
        tally = Tally(1000, device)
        parts = [tensor.to(device).split(64) for tensor in (logits, scores, labels, torch.arange(500))]
        losses = [torch.nn.functional.cross_entropy(logits[:64].to(device), labels[:64].to(device))] * len(parts[0])
        torch.cuda.set_sync_debug_mode("error" if device.type == "cuda" else "default")
        try:
            for loss, *batch in zip(losses, *parts, strict=True):
                tally.add(loss, *batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        results.append(tally.read())
    on_cpu, on_gpu = results
    assert torch.equal(on_cpu.pop("confusion"), on_gpu.pop("confusion"))
    assert on_gpu.pop("loss") == pytest.approx(on_cpu.pop("loss"), rel=1e-6)
    assert on_gpu == on_cpu
