"""Policies' operations on a GPU: the pixels of a CPU, to a level where float32 is rounded, and nobody waits for it."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from resnet.data.operations import NAMES, Operations, apply_to_batch, apply_to_one
from tests.resnet.test_operations import ROUNDED, drawn, magnitudes_of, pictures


@contextmanager
def strictly(device: str) -> Iterator[None]:
    """Deterministic kernels only, and an error where the host waits for the GPU."""
    torch.use_deterministic_algorithms(True)
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", NAMES)
def test_an_operation_is_that_of_a_cpu(device, name):
    images = pictures(53, 61).repeat(17, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    operations = [[(name, each)] for each in (magnitudes_of(name, 53, 61) * len(images))[: len(images)]]
    there, found = images.to(device), Operations.of(operations)
    with strictly(device):
        made = apply_to_batch(there, found)
    assert made.is_contiguous(memory_format=torch.channels_last)
    alone = torch.stack([apply_to_one(image, each) for image, each in zip(images, operations, strict=True)])
    difference = (made.cpu().int() - alone.int()).abs()
    assert difference.max() <= (1 if name in ROUNDED else 0)
    assert difference.sum() <= 0.01 * difference.numel()


def test_many_operations_make_the_same_of_a_batch_each_time(device):
    images = pictures(53, 61).repeat(20, 1, 1, 1).to(device)
    operations = Operations.of(drawn(len(images)))
    with strictly(device):
        first, second = (apply_to_batch(images, operations) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, images)
