"""Batches that are copied to the GPU ahead of time are those that were made, however slow either side is."""

import time
from collections.abc import Iterator

import pytest
import torch

import resnet.data.loader
from resnet.data.batches import Batch, Key, MicroBatches
from resnet.data.loader import _copied_ahead
from resnet.data.on_device import checksum
from resnet.tools.compare import compare_runs
from tests.helpers import column
from tests.resnet.gpu.support import CUDA, before_each_step, occupy, run

BATCHES = 12


class SlowToCopy:
    """Stands for a batch's images: the stream that copies them is busy before."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def to(self, device: torch.device, non_blocking: bool) -> torch.Tensor:
        occupy(10)
        return self.images.to(device, non_blocking=non_blocking)


def made(number: int) -> Batch:
    """A batch of which every value tells its number, page-locked as the data loader leaves it."""
    images = torch.full((32, 3, 64, 64), number, dtype=torch.uint8).pin_memory()
    labels, erased = (torch.full(shape, number).pin_memory() for shape in ((32,), (32, 4)))
    return Batch(Key(0, 32 * number, 32 * number + 32, 64), images, labels, erased, [])


def production(slowly: bool) -> Iterator[Batch]:
    for number in range(BATCHES):
        batch = made(number)
        yield batch._replace(images=SlowToCopy(batch.images)) if slowly else batch  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("slow", [pytest.param(side, marks=CUDA) for side in ("consumer", "copies", "neither")])
def test_batches_that_are_copied_ahead_arrive_whole(slow):
    found = []
    for batch in _copied_ahead(production(slow == "copies"), torch.device("cuda")):
        if slow == "consumer":
            occupy(10)
        # Read when the GPU comes to it; by then the batch's memory is no longer held here.
        found.append((batch.key, *(tensor.clone() for tensor in (batch.images, batch.labels, batch.erased))))
        del batch
    assert [key.start // 32 for key, *_ in found] == list(range(BATCHES))
    for number, (_, *tensors) in enumerate(found):
        assert all(tensor.is_cuda for tensor in tensors)
        assert [tensor.unique().tolist() for tensor in tensors] == [[number]] * 3


@pytest.mark.parametrize("size", [pytest.param(size, marks=CUDA) for size in (224, 7)])
def test_a_checksum_is_that_of_a_cpu(size):
    images = torch.randint(256, (5, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    assert checksum(images.cuda()).item() == checksum(images).item()


@pytest.mark.parametrize(
    ("where", "slow"),
    [("cpu", "worker"), pytest.param("cuda", "worker", marks=CUDA), pytest.param("cuda", "trainer", marks=CUDA)],
)
def test_a_run_that_copies_ahead_equals_one_that_does_not(tmp_path, monkeypatch, where, slow):
    words = [f"device={where}", "deterministic=true", "log_every=10"]
    words += ["augment.random_erasing=0.5", "augment.mixup=0.2", "max_batch_per_device=8"]
    with monkeypatch.context() as patched:
        patched.setattr(resnet.data.loader, "_copied_ahead", lambda batches, *_: batches)
        plain = run(tmp_path, "plain", *words)
    make = MicroBatches.__getitem__
    if slow == "trainer":
        before_each_step(monkeypatch, lambda _: occupy(20))
    else:
        monkeypatch.setattr(MicroBatches, "__getitem__", lambda self, key: time.sleep(0.02) or make(self, key))
    ahead = run(tmp_path, "ahead", *words, "data.num_workers=2")
    assert compare_runs(plain, ahead) == []
    if slow == "worker":
        assert column(ahead, "data_wait")[0] > 0.05
