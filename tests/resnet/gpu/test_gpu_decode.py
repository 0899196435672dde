"""JPEGs that a GPU decodes: near the CPU's pixels, never turned, and a run of them goes on as if it had not ended."""

import numpy as np
import pytest
import torch
from PIL import Image

import resnet.data.kept
from recipes.schema.augment import Augment
from resnet.data.arrays import BrokenImage
from resnet.data.batches import Key, MicroBatches
from resnet.data.decode import decode
from resnet.data.encoded import EncodedBatches
from resnet.data.gpu_decode import check_gpu_decodes, decode_on
from resnet.data.loader import Loader
from resnet.data.order import Order
from resnet.tools.compare import compare_runs
from tests.resnet.gpu import support
from tests.resnet.gpu.support import ON_CUDA, run, stopped
from tests.resnet.test_decode import FILES, JPEGS, exif, saved
from tests.resnet.test_encoded import CUT, DAMAGED, PLAIN, Files

MEAN, MOST = 2.0, 60
"""Levels of 255 by which pixels differ on average, and at most: nvJPEG repeats colours that libjpeg interpolates."""


def photograph(number: int) -> Image.Image:
    """Smooth colours with some edges, as photographs have, of a size that fills no block."""
    random = np.random.default_rng(number)
    small = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    return small.resize((203 + number, 151 + number), Image.Resampling.BICUBIC)


def decoded(files: list[bytes], device: str) -> list[torch.Tensor]:
    found = []
    for image in decode_on(files, torch.device(device)):
        assert isinstance(image, torch.Tensor)
        assert (image.device.type, image.dtype) == (device, torch.uint8)
        found.append(image.cpu())
    return found


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "grey"])
def test_pixels_are_near_the_cpus(subsampling, device):
    check_gpu_decodes(torch.device(device))
    images = [photograph(number) for number in range(8)]
    if subsampling == "grey":
        files = [saved(image.convert("L"), "JPEG") for image in images]
    else:
        files = [saved(image, "JPEG", subsampling=subsampling) for image in images]
    for file, found in zip(files, decoded(files, device), strict=True):
        expected = decode(file)
        assert found.shape == expected.shape
        difference = (found.float() - expected.float()).abs()
        assert difference.mean() < MEAN
        assert difference.max() < MOST


def test_no_orientation_turns_an_image(device):
    plain = saved(photograph(0), "JPEG")
    turned = [plain[:2] + exif(number, order) + plain[2:] for number in range(1, 9) for order in "<>"]
    first, *others = decoded([plain, *turned], device)
    for image in others:
        assert torch.equal(image, first)


def test_each_image_that_it_refuses_is_the_cpus(device):
    others = ["png", "cmyk jpeg", "webp"]
    files = [PLAIN, CUT, *(FILES[kind] for kind in others), JPEGS["rgb"], DAMAGED, PLAIN]
    found = decode_on(files, torch.device(device))
    assert [number for number, image in enumerate(found) if isinstance(image, BrokenImage)] == [1, 6]
    for number in (2, 3, 4, 5):
        assert torch.equal(found[number].cpu(), decode(files[number]))  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(found[0], found[7])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_the_same_images(workers, device):
    files, augment = Files(DAMAGED), Augment(train_size=24, val_size=20, val_resize=22, random_erasing=0.5)
    order, count = Order(files.labels, seed=3, batch_size=8), len(files)
    plain = MicroBatches(files, files, order, augment, operations_on_device=True)
    keys = [Key(0, start, min(start + 8, count), 24) for start in range(0, count, 8)] + [Key(None, 0, count, 20)]
    loader = Loader(EncodedBatches(files, files, order, augment), keys, torch.device(device), workers, prefetch=2)
    try:
        for key, got in zip(keys, loader, strict=True):
            expected = plain[key]
            assert (got.broken, got.missing) == (expected.broken, expected.missing)
            assert torch.equal(got.labels.cpu(), expected.labels)
            # Some of the files hold noise, whose colours differ by much where they are halved.
            assert (got.images.cpu().float() - expected.images.float()).abs().mean() < 16
    finally:
        loader.end()


@pytest.mark.parametrize("where", ["cpu", ON_CUDA])
def test_a_run_that_is_stopped_goes_on_to_the_same_end(tmp_path, monkeypatch, shapes, where):
    monkeypatch.setattr(support, "TINY", [word for word in support.TINY if not word.startswith("data=")])
    words = [f"device={where}", "deterministic=true", "augment.policy=randaugment"]
    words += [f"data.train={shapes}", "data.per_class=16", "data.size=40", "data.num_workers=1"]
    words += ["data.decode=gpu"] if where == "cuda" else []
    whole = run(tmp_path, "whole", *words)
    if where == "cpu":
        # The same way, with the CPU's decoder at its end, which no recipe asks for.
        encoded = lambda recipe, *data: EncodedBatches(*data[:3], recipe.augment)  # noqa: E731
        monkeypatch.setattr(resnet.data.kept, "micro_batches", encoded)
    cut = stopped(monkeypatch, tmp_path, "cut", *words, step=3)
    assert run(tmp_path, "cut", *words) == cut
    assert compare_runs(whole, cut) == []
