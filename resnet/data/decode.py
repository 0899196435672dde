"""From the bytes of an image file to a uint8 tensor: the one function that every source's bytes go through."""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from resnet.data.arrays import NPY, BrokenImage, check_size, decode_npy, scaled_to_8_bits

try:
    from torchcodec.decoders import decode_jpeg
except (ImportError, OSError, RuntimeError) as error:
    raise ValueError(
        f"torchcodec, which decodes JPEGs, cannot be loaded ({(str(error).splitlines() or ['?'])[0]}): install the one "
        f"for torch {torch.__version__} (https://github.com/meta-pytorch/torchcodec#installing-torchcodec)"
    ) from error

Image.init()  # `formats` below finds only plugins that are loaded

# Without EPS and its kind, which Pillow hands to other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "PPM", "TIFF", "GIF")


def decode(data: bytes) -> torch.Tensor:
    """Decode a file's bytes to RGB: uint8 (3, H, W), grey images repeated over the channels, 16 bits scaled to 8.

    Transparency is dropped and the EXIF orientation ignored, as in the pipelines that published accuracies come from
    (torchvision's, with Pillow's `convert("RGB")`). A .npy file gives its three bands. Raises BrokenImage, whatever is
    wrong with the bytes.
    """
    if not data:
        raise BrokenImage("the file is empty")
    if data.startswith(NPY):
        return decode_npy(data, 3, None)
    if (header := jpeg_header(data)) is not None:
        check_size(header.height, header.width)
        try:
            image = decode_jpeg(without_exif(data, header))  # pyright: ignore[reportArgumentType]
            assert isinstance(image, torch.Tensor)
            return image
        except RuntimeError:
            pass  # Pillow reads some files that torchcodec refuses, and gives better reasons for the others
    return decode_by_pillow(data, _rgb)


def decode_by_pillow(data: bytes, pixels_of: Callable[[Image.Image], np.ndarray]) -> torch.Tensor:
    """uint8 (C, H, W) of a file's bytes. pixels_of: takes (H, W, C) from the opened image. Raises BrokenImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                check_size(image.height, image.width)
                pixels = pixels_of(image)
    except BrokenImage:
        raise
    except Image.UnidentifiedImageError:
        raise BrokenImage("not an image in a format that is read here (JPEG, PNG, WebP, BMP, PPM, TIFF, GIF)") from None
    except Exception as error:  # on hostile bytes Pillow raises anything, SyntaxError and struct.error included
        raise BrokenImage(str(error) or type(error).__name__) from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _rgb(image: Image.Image) -> np.ndarray:
    """Pixels uint8 (H, W, 3)."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return np.repeat(scaled_to_8_bits(np.asarray(image), 65535)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SAMPLINGS = {b"\x11\x11\x11", b"\x21\x11\x11", b"\x22\x11\x11", b"\x12\x11\x11", b"\x41\x11\x11"}
"""4:4:4, 4:2:2, 4:2:0, 4:4:0 and 4:1:1, as a frame has the three components' factors."""
_ALONE = {0x00, 0x01, *range(0xD0, 0xDA)}
"""Markers without a length (and what is none): none of them stands in a header that is in order."""


class JpegHeader(NamedTuple):
    """What the markers before a JPEG's first scan tell of one that torchcodec decodes: grey, or of three components."""

    height: int
    width: int
    common: bool
    """Whether every JPEG decoder takes it: sequential, 8 bits, grey or YCbCr in a usual subsampling."""
    exif: list[int]
    """Where the second byte of each Exif marker stands."""
    scan: int
    """Where the marker of the first scan stands."""


def jpeg_header(data: bytes) -> JpegHeader | None:
    """Walk over a JPEG's markers (ITU-T T.81, B.1 and B.2); None where they are no such JPEG's, or out of place."""
    at, size, common, exif = 2 if data[:2] == b"\xff\xd8" else len(data), None, True, []
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA:
            return None if size is None else JpegHeader(*size, common and all(size), exif, at)
        if marker in _ALONE:
            break
        if marker in _FRAMES:
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            if components not in (1, 3):
                break
            size = height, width
            common &= marker <= 0xC1 and bits == 8 and _is_usual(data[at + 10 : at + 10 + 3 * components])
        elif marker == 0xE1 and data[at + 12 : at + 14] in (b"*\0", b"\0*"):
            # TIFF's number 42, after `Exif` and the order of the bytes: by it alone torchcodec knows an orientation.
            exif.append(at + 1)
        elif marker == 0xEE and data[at + 4 : at + 9] == b"Adobe":
            common &= data[at + 15 : at + 16] == b"\1"  # YCbCr
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _is_usual(components: bytes) -> bool:
    """Of a frame's components, three bytes each: whether they are grey, or YCbCr in a usual subsampling."""
    return len(components) == 3 or (components[::3] != b"RGB" and components[1::3] in _SAMPLINGS)


_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""None that a scan's data hold: 0 stands behind each FF of theirs, and a restart's number or FF, to fill, at places."""


def end_of(data: bytes, header: JpegHeader) -> int | None:
    """Bytes up to and with the end (EOI) of a JPEG of one scan; None where anything else, or nothing, ends the scan.

    There decoders go on in different ways: some fail, others fill what is missing.
    """
    start = header.scan + 2 + int.from_bytes(data[header.scan + 2 : header.scan + 4], "big")
    marker = _MARKER.search(data, start)
    return marker.end() if marker is not None and marker[0] == b"\xff\xd9" else None


def without_exif(data: bytes, header: JpegHeader) -> bytes | bytearray:
    """The bytes with Exif's markers (APP1) made APP15, which says nothing: torchcodec turns images as Exif tells."""
    if not header.exif:
        return data
    changed = bytearray(data)
    for at in header.exif:
        changed[at] = 0xEF
    return changed
