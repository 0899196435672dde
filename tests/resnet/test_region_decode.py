"""Decoding of a JPEG what is cropped: the same pixels as cropping what was decoded, whatever the file."""

import importlib.util
import io
import random

import pytest
import torch
from PIL import Image

from recipes.errors import RecipeError
from recipes.load import load
from recipes.schema.augment import Augment
from resnet.data import region_decode
from resnet.data.arrays import BrokenImage
from resnet.data.batches import Key, MicroBatches
from resnet.data.decode import decode
from resnet.data.draws import Drawn
from resnet.data.order import Order
from resnet.data.region_decode import RegionBatches, check_region_decoder, decode_region
from resnet.data.undecoded import Undecoded, opened
from tests.resnet.test_encoded import CUT, DAMAGED, PLAIN, Files, assert_equal

if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.nvimgcodec") is None:
    pytest.skip("needs the extra [fast]", allow_module_level=True)


def jpeg(height: int, width: int, **how) -> bytes:
    """Waves of colours and noise, whose colours are smoothed where chroma is subsampled."""
    rows, columns = torch.meshgrid(torch.linspace(0, 30, height), torch.linspace(0, 40, width), indexing="ij")
    waves = torch.stack([rows.sin() + columns.sin(), (rows + columns).cos(), (rows * columns / 30).sin()], dim=2)
    noise = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(0))
    file = io.BytesIO()
    image = Image.fromarray(((waves + 2) * 50 + noise * 40).to(torch.uint8).numpy())
    (image.convert("L") if how.pop("grey", False) else image).save(file, "JPEG", quality=90, **how)
    return file.getvalue()


KINDS = [
    *({"subsampling": kind, "progressive": progressive} for kind in (0, 1, 2, "4:1:1") for progressive in (0, 1)),
    *({"grey": True}, {"restart_marker_blocks": 5}, {"restart_marker_rows": 2, "progressive": True}),
]


@pytest.mark.parametrize("how", KINDS, ids=str)
def test_a_part_is_that_of_the_whole(how):
    numbers = torch.Generator().manual_seed(1)
    for height, width in ((201, 133), (33, 47), (40, 301)):
        file = jpeg(height, width, **how)
        assert isinstance(opened(file), Undecoded) != bool(how.get("progressive"))
        whole = decode(file)
        for _ in range(25):
            top, left = (int(torch.randint(side, (), generator=numbers)) for side in (height, width))
            rows, columns = (
                int(torch.randint(1, rest + 1, (), generator=numbers)) for rest in (height - top, width - left)
            )
            if columns == 1:
                continue  # which `RegionBatches` cuts from the whole
            part = decode_region(file, (top, left, rows, columns))
            assert part is not None
            assert torch.equal(part, whole[:, top : top + rows, left : left + columns]), (top, left, rows, columns)


def test_a_part_one_pixel_wide_is_that_of_the_whole():
    file, augment = jpeg(113, 115, subsampling=2), Augment(train_size=16)
    files = Files(file)
    plain, region = (kind(files, files, Order(files.labels, 3, 1), augment) for kind in (MicroBatches, RegionBatches))
    for box in ((0, 0, 83, 1), (0, 114, 113, 1), (7, 33, 1, 1), (5, 0, 60, 2)):
        drawn = Drawn(box, False, False, [])
        assert torch.equal(
            region._crop(16, region._read(files, len(files) - 1), drawn), plain._crop(16, decode(file), drawn)
        ), box


def damaged(file: bytes, draw: random.Random) -> bytes:
    """With a marker, an end, noise or a gap somewhere in its scan, or with a byte of its header changed."""
    scan = file.index(b"\xff\xda")
    at, there, noise = draw.randrange(scan + 14, len(file) - 2), draw.randrange(2, scan + 14), draw.randbytes(6)
    return draw.choice(
        [
            *(file[:at] + bytes([255, draw.randrange(1, 256)]) + more + file[at:] for more in (noise, b"")),
            *(file[:at] + b"\xff\xd9" + rest for rest in (file[at:], b"")),
            *(file[:at] + noise + file[at + skipped :] for skipped in (0, 6, 40)),
            file[:at] + bytes([255, draw.randrange(0xD0, 0xD8)]) + file[at:],
            file[:there] + noise[:1] + file[there + 1 :],
        ]
    )


def test_of_a_damaged_file_a_part_is_that_of_the_whole_or_both_are_refused():
    draw, files, compared = random.Random(0), [jpeg(64, 90, **how) for how in KINDS], 0
    for number in range(900):
        file = damaged(draw.choice(files), draw)
        try:
            whole, left = decode(file), opened(file)
        except BrokenImage:
            assert is_refused(file), number
            continue
        if not isinstance(left, Undecoded):
            continue
        top, across = draw.randrange(left.height), draw.randrange(left.width - 1)
        rows, columns = draw.randint(1, left.height - top), draw.randint(2, left.width - across)
        part = decode_region(left.data, (top, across, rows, columns))
        if part is not None:
            assert torch.equal(part, whole[:, top : top + rows, across : across + columns]), number
            compared += 1
    assert compared > 100


def is_refused(file: bytes) -> bool:
    """By what decodes parts, too."""
    try:
        left = opened(file)
    except BrokenImage:
        return True
    return isinstance(left, Undecoded) and decode_region(left.data, (0, 0, left.height, left.width)) is None


def test_batches_are_the_same_to_the_last_bit():
    """Of files of all kinds, among them such as cannot be read."""
    files = Files(DAMAGED, *(jpeg(70, 90, **how) for how in KINDS))
    augment = Augment(train_size=24, val_size=20, val_resize=22, policy="randaugment", random_erasing=0.5, vflip=0.5)
    order, count = Order(files.labels, seed=3, batch_size=8), len(files)
    plain, region = (kind(files, files, order, augment) for kind in (MicroBatches, RegionBatches))
    for key in [Key(epoch, 0, count, 24) for epoch in range(4)] + [Key(None, 0, count, 20)]:
        assert_equal(region[key], plain[key])
    assert sum(isinstance(region._read(files, at), Undecoded) for at in range(count) if is_jpeg(files.read(at))) > 10


def is_jpeg(file) -> bool:
    return isinstance(file, bytes) and file[:2] == b"\xff\xd8" and file != CUT


def test_what_cannot_be_read_in_part_is_told():
    for file in (b"", DAMAGED, PLAIN[: PLAIN.index(b"\xff\xda")]):
        assert decode_region(file, (0, 0, 8, 8)) is None


def test_it_is_refused_where_it_cannot_be_or_has_no_effect(monkeypatch):
    with pytest.raises(RecipeError, match=r"crop=pad takes whole images: set data.decode=cpu"):
        load(["recipe=cifar10_resnet18", "data.decode=region"])

    def missing():
        raise ModuleNotFoundError("No module named 'nvidia.nvimgcodec'")

    monkeypatch.setattr(region_decode, "_decoder", missing)
    with pytest.raises(ValueError, match=r"pip install 'resnet-launch\[fast\]', or use data.decode=cpu"):
        check_region_decoder()
