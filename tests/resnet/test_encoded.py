"""Images that are left to the device to decode: the same batches as without, whatever the files."""

import contextlib
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from recipes.load import load
from recipes.plan import make_plan
from recipes.schema.augment import Augment
from resnet.data import encoded, gpu_decode
from resnet.data.arrays import BrokenImage
from resnet.data.batches import Key, MicroBatches
from resnet.data.decode import decode
from resnet.data.encoded import EncodedBatches, is_resizable
from resnet.data.gpu_decode import _by_nvjpeg, decode_on
from resnet.data.loader import Loader, check_shared_memory
from resnet.data.order import Order
from resnet.data.undecoded import Undecoded, opened
from tests.resnet.test_decode import FILES, JPEGS, exif, saved

CPU = torch.device("cpu")
PLAIN = JPEGS["4:2:0"]
TURNED = PLAIN[:2] + exif(6, "<") + PLAIN[2:]
CUT = PLAIN[:-2]
DAMAGED = re.sub(rb"(?s)(\xff\xc4...).{16}", rb"\1" + b"\xff" * 16, PLAIN, count=1)
"""With a sound header and its end, and a table that no decoder accepts."""


class Files:
    """Those of all kinds, one that is no file, and some that are broken."""

    def __init__(self, *more: bytes) -> None:
        pixels = torch.randint(256, (3, 33, 21), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        self._files = [*FILES.values(), pixels, *JPEGS.values(), CUT, TURNED, b"", *more]
        self.labels, self.classes = np.arange(len(self._files)) % 3, ["a", "b", "c"]

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> bytes | torch.Tensor:
        return self._files[index]

    def describe(self, index: int) -> str:
        return f"file {index}"


def test_what_travels_as_bytes():
    sent = [kind for kind, file in (FILES | JPEGS).items() if isinstance(opened(file), Undecoded)]
    assert sent == [
        *("jpeg", "grey jpeg", "4:4:4", "4:2:2", "4:2:0", "4:4:0", "4:1:1"),
        *("grey", "restarts", "bytes after its end"),
    ]
    frame = PLAIN.index(b"\xff\xc0")
    assert not isinstance(opened(PLAIN[: frame + 11] + b"\x24" + PLAIN[frame + 12 :]), Undecoded), "an odd subsampling"
    ended = opened(JPEGS["bytes after its end"])
    assert isinstance(ended, Undecoded)
    assert ended.data == FILES["jpeg"]
    for broken in (CUT, b""):
        with pytest.raises(BrokenImage):
            opened(broken)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {"policy": "randaugment", "random_erasing": 0.5, "vflip": 0.5},
        {"crop": "pad", "padding": 3, "interpolation": "bicubic"},
    ],
)
def test_batches_are_the_same_to_the_last_bit(changes, workers):
    files, augment = Files(), Augment(train_size=24, val_size=20, val_resize=22, **changes)
    order, count = Order(files.labels, seed=3, batch_size=8), len(files)
    plain = MicroBatches(files, files, order, augment, operations_on_device=True)
    keys = [Key(epoch, start, min(start + 8, count), 24) for epoch in (0, 1) for start in range(0, count, 8)]
    keys += [Key(None, start, min(start + 8, count), 20) for start in range(0, count, 8)]
    loader = Loader(EncodedBatches(files, files, order, augment), keys, CPU, workers, prefetch=2)
    try:
        for key, got in zip(keys, loader, strict=True):
            assert_equal(got, plain[key])
    finally:
        loader.end()


def assert_equal(got, expected) -> None:
    assert (got.key, got.broken, got.missing, got.encoded) == (expected.key, expected.broken, expected.missing, None)
    assert torch.equal(got.images, expected.images), got.key
    assert got.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got.labels, expected.labels)
    for mine, other in ((got.erased, expected.erased), (got.operations, expected.operations)):
        assert (mine is None) == (other is None)
        for one, another in zip(mine if mine is not None else (), other if other is not None else (), strict=True):
            assert torch.equal(one, another) if isinstance(one, torch.Tensor) else one == another


def test_a_file_that_proves_broken_on_the_device_is_replaced_as_always():
    files, augment = Files(DAMAGED), Augment(train_size=24, val_size=20, val_resize=22, random_erasing=0.5)
    order, count = Order(files.labels, seed=3, batch_size=8), len(files)
    assert isinstance(opened(DAMAGED), Undecoded)
    sent = EncodedBatches(files, files, order, augment)
    plain = MicroBatches(files, files, order, augment, operations_on_device=True)
    for key in (Key(0, 0, count, 24), Key(None, 0, count, 20)):
        state = torch.random.get_rng_state()
        batch = sent[key]
        torch.random.set_rng_state(state)
        got = sent.finish(batch, CPU)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert any(f"file {count - 1}: " in told for told in got.broken)
        assert_equal(got, plain[key])


@pytest.mark.parametrize("crop", ["random_resized", "resize"])
def test_what_would_fail_on_the_device_is_made_by_the_worker(monkeypatch, crop):
    """Files too large for /dev/shm, and shrinking that takes more shared memory than a GPU's block has."""
    augment = Augment(train_size=24, val_size=24, val_resize=24, crop=crop, scale=(0.99, 1.0))
    for size, most, travels in (((60, 40), 10**6, True), ((60, 40), 10, False), ((9000, 3000), 10**6, False)):
        monkeypatch.setattr(encoded, "_MOST_BYTES", most)
        files = Files()
        files._files, files.labels = [saved(Image.new("L", size), "JPEG")], np.zeros(1, dtype=np.int64)
        batches = EncodedBatches(files, files, Order(files.labels, seed=3, batch_size=1), augment)
        for epoch in (None, 0):
            assert (batches[Key(epoch, 0, 1, 24)].encoded is not None) == travels


def test_how_far_a_gpu_can_shrink():
    assert is_resizable((2000, 3000), 224, "bicubic")
    assert is_resizable((92 * 224, 92 * 224), 224, "bilinear")
    assert not is_resizable((95 * 224, 95 * 224), 224, "bilinear")
    assert not is_resizable((92 * 224, 92 * 224), 224, "bicubic")
    assert not is_resizable((40, 200 * 224), 224, "bilinear")


def test_room_in_shared_memory_is_that_of_the_files(monkeypatch):
    class Large(Files):
        def read(self, index: int) -> bytes:
            return b"0" * 1_000_000

    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=90, f_frsize=1_000_000))
    for where in ("cpu", "gpu"):
        recipe = load(["recipe=resnet50_imagenet", "batch_size=100", f"data.decode={where}"]).recipe
        with pytest.raises(ValueError, match="may fill 100 MB") if where == "gpu" else contextlib.nullcontext():
            check_shared_memory(make_plan(recipe, 1000, 1), workers=2, prefetch=2, train=Large())


@pytest.mark.parametrize(("message", "passes"), [("CUDA out of memory", True), ("nvjpegDecode failed: 5", False)])
def test_running_out_of_memory_is_no_bad_file(monkeypatch, message, passes):
    def failing(*_, **__):
        raise RuntimeError(message)

    monkeypatch.setattr(gpu_decode, "decode_jpeg", failing)
    with pytest.raises(RuntimeError, match=message) if passes else contextlib.nullcontext():
        assert _by_nvjpeg([PLAIN], CPU) == [None]


def test_a_bad_file_loses_no_other():
    files = [PLAIN, CUT, FILES["png"], DAMAGED, FILES["cmyk jpeg"], TURNED]
    found = decode_on(files, CPU)
    assert [isinstance(image, BrokenImage) for image in found] == [False, True, False, True, False, False]
    for number in (0, 2, 4, 5):
        image = found[number]
        assert isinstance(image, torch.Tensor)
        assert torch.equal(image, decode(files[number]))
    assert decode_on([], CPU) == []


@pytest.mark.parametrize("bad", [[], [0], [4], [1, 2], [0, 1, 2, 3, 4]])
def test_a_call_that_fails_is_halved(bad):
    """By torchcodec's CPU decoder, which takes as many files in a call, and fails it for one, as that of a GPU does."""
    files = [CUT if number in bad else PLAIN for number in range(5)]
    found = _by_nvjpeg(files, CPU)
    assert [number for number, image in enumerate(found) if image is None] == bad
    assert all(torch.equal(image, decode(PLAIN)) for image in found if image is not None)
