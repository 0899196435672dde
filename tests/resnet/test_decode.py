import importlib.util
import io
import random
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchcodec.decoders import decode_jpeg as decode_turned

import resnet.data.decode
from resnet.data.arrays import BrokenImage
from resnet.data.decode import decode

PIXELS = np.linspace(0, 255, 40 * 60 * 3).reshape(40, 60, 3).astype(np.uint8)


def saved(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png_16_bit(values: np.ndarray) -> bytes:
    """A PNG of 16-bit RGB (which Pillow cannot write) from uint16 (H, W, 3)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def by_pillow(data: bytes) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)


RGB = Image.fromarray(PIXELS)
FILES = {
    "jpeg": saved(RGB, "JPEG", quality=90),
    "progressive jpeg": saved(RGB, "JPEG", progressive=True),
    "grey jpeg": saved(RGB.convert("L"), "JPEG"),
    "cmyk jpeg": saved(RGB.convert("CMYK"), "JPEG"),
    "png": saved(RGB, "PNG"),
    "grey png": saved(RGB.convert("L"), "PNG"),
    "1-bit png": saved(RGB.convert("1"), "PNG"),
    "palette png": saved(RGB.quantize(16), "PNG"),
    "palette png with transparency": saved(RGB.quantize(16), "PNG", transparency=bytes(range(16))),
    "alpha png": saved(RGB.convert("RGBA"), "PNG"),
    "grey alpha png": saved(RGB.convert("LA"), "PNG"),
    "webp": saved(RGB, "WEBP"),
    "bmp": saved(RGB, "BMP"),
    "ppm": saved(RGB, "PPM"),
    "tiff": saved(RGB, "TIFF"),
    "gif": saved(RGB, "GIF"),
}


@pytest.mark.parametrize("kind", FILES)
def test_decodes_as_pillow_does_without_warnings(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = decode(FILES[kind])
    assert image.dtype == torch.uint8
    assert image.shape == (3, 40, 60)
    difference = (image.float() - by_pillow(FILES[kind]).float()).abs()
    assert difference.max() <= 3, f"{kind} differs by {difference.max()}"


def test_16_bit_grey_is_scaled_to_8():
    values = np.array([[0, 255, 257, 32768, 65279, 65535]], dtype=np.uint16)
    image = decode(saved(Image.fromarray(values), "PNG"))
    assert image.shape == (3, 1, 6)
    assert image[0].tolist() == image[2].tolist() == [[0, 1, 1, 128, 254, 255]]


def test_16_bit_rgb_is_scaled_to_8():
    image = decode(png_16_bit(np.array([[[0, 32768, 65535]]], dtype=np.uint16)))
    assert image.flatten().tolist() == [0, 128, 255]


def relabelled(sampling: int, written: str, as_written: int) -> bytes:
    """A JPEG of another subsampling than Pillow can write: the units of 64 x 64 pixels are as many, as they lie."""
    data = saved(Image.fromarray(NOISE), "JPEG", subsampling=written)
    frame = data.index(b"\xff\xc0")
    assert data[frame + 11] == as_written
    return data[: frame + 11] + bytes([sampling]) + data[frame + 12 :]


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
JPEGS = {
    **{sampling: saved(RGB, "JPEG", subsampling=sampling) for sampling in ("4:4:4", "4:2:2", "4:2:0")},
    "4:4:0": relabelled(0x12, "4:2:2", 0x21),
    "4:1:1": relabelled(0x41, "4:2:0", 0x22),
    "grey": FILES["grey jpeg"],
    "progressive": FILES["progressive jpeg"],
    "restarts": saved(RGB, "JPEG", restart_marker_rows=1),
    "bytes after its end": FILES["jpeg"] + b"\0" * 100,
    "rgb": saved(RGB, "JPEG", keep_rgb=True),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_has_pillows_pixels(kind):
    """And torchvision's, of every subsampling but 4:4:0, which torchvision 0.26 takes another libjpeg-turbo for."""
    assert torch.equal(decode(JPEGS[kind]), by_pillow(JPEGS[kind]))


@pytest.mark.parametrize("transform", [0, 2], ids=["cmyk", "ycck"])
def test_four_colours_are_what_pillow_decodes(transform):
    data = bytearray(FILES["cmyk jpeg"])
    data[data.index(b"Adobe") + 11] = transform
    assert torch.equal(decode(bytes(data)), by_pillow(data))


def exif(orientation: int, order: str, before: bytes = b"Exif\0\0") -> bytes:
    """A JPEG's segment that has nothing but an orientation."""
    tiff = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HIHHHIHHI", 42, 8, 1, 0x112, 3, 1, orientation, 0, 0)
    return b"\xff\xe1" + struct.pack(">H", 2 + len(before) + len(tiff)) + before + tiff


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_ignored(orientation, order):
    for kind in ("4:2:0", "grey", "progressive"):
        data = JPEGS[kind]
        turned = data[:2] + exif(orientation, order) + data[2:]
        assert Image.open(io.BytesIO(turned)).getexif()[0x112] == orientation
        assert torch.equal(decode(turned), decode(data))


def test_exif_is_ignored_wherever_it_stands():
    data, turned = JPEGS["4:2:0"], exif(6, "<")
    scan = data.index(b"\xff\xda")
    xmp = b"\xff\xe1\0\x22http://ns.adobe.com/xap/1.0/\0<x>"
    for start in (turned + turned, xmp + turned, b"\xff\xff" + turned, exif(6, ">", b"EXIF\0\0")):
        assert torch.equal(decode(data[:2] + start + data[2:]), decode(data))
    assert torch.equal(decode(data[:scan] + turned + data[scan:]), decode(data))
    upright = torch.flip(decode(data).transpose(1, 2), [2])
    assert torch.equal(decode_turned(data[:2] + turned + data[2:]), upright), "torchcodec has stopped turning"


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_orientation_of_other_formats_is_ignored(form):
    tags = Image.Exif()
    tags[0x112] = 6
    assert torch.equal(decode(saved(RGB, form, exif=tags)), decode(saved(RGB, form)))


def test_without_torchcodec_a_line_says_what_to_do(monkeypatch):
    spec = importlib.util.spec_from_file_location("decode_again", resnet.data.decode.__file__)
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(ValueError, match=r"^torchcodec, .* cannot be loaded \(.*\): install the one .*$"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_corrupt_exif_does_no_harm():
    marker = b"\xff\xe1\x00\x10Exif\0\0II*\0\xff\xff\xff\xff"
    assert torch.equal(decode(FILES["jpeg"][:2] + marker + FILES["jpeg"][2:]), decode(FILES["jpeg"]))


def test_stray_bytes_between_segments_do_no_harm():
    data = FILES["jpeg"]
    end = 4 + int.from_bytes(data[4:6], "big")
    assert torch.equal(decode(data[:end] + b"\0\0\0" + data[end:]), decode(data))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_one_pixel(form):
    assert decode(saved(Image.new("RGB", (1, 1), (200, 200, 200)), form)).shape == (3, 1, 1)


@pytest.mark.parametrize("kind", ["jpeg", "progressive jpeg", "cmyk jpeg", "png", "webp", "tiff"])
def test_a_truncated_file_is_broken(kind):
    with pytest.raises(BrokenImage, match=r"\w"):
        decode(FILES[kind][: len(FILES[kind]) // 2])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"no image at all", "not an image"),
        (b"\xff\xd8\xff", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_other_bytes_are_broken(data, reason):
    with pytest.raises(BrokenImage, match=reason):
        decode(data)


def test_a_decompression_bomb_is_refused():
    start = FILES["jpeg"].index(b"\xff\xc0") + 5
    jpeg = FILES["jpeg"][:start] + struct.pack(">HH", 65000, 65000) + FILES["jpeg"][start + 4 :]
    png = FILES["png"][:16] + struct.pack(">II", 65000, 65000) + FILES["png"][24:29]
    png += struct.pack(">I", zlib.crc32(png[12:29])) + FILES["png"][33:]
    for bomb in (jpeg, png):
        with pytest.raises(BrokenImage, match="pixels"):
            decode(bomb)


@pytest.mark.parametrize("kind", FILES)
def test_damaged_bytes_give_an_image_or_a_reason(kind):
    draw = random.Random(kind)
    for _ in range(40):
        data = bytearray(FILES[kind])
        for _ in range(draw.choice([1, 5, 50])):
            data[draw.randrange(min(len(data), draw.choice([40, 10**6])))] = draw.randrange(256)
        try:
            result = decode(bytes(data))
        except BrokenImage as error:
            result = str(error)
        assert result if isinstance(result, str) else (result.dtype, result.shape[0]) == (torch.uint8, 3)
