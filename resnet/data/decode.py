"""From the bytes of an image file to a uint8 tensor: the one function that every source's bytes go through."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

MAX_PIXELS = 178_956_970
"""Images with more pixels are refused before memory is taken for them (as Pillow refuses decompression bombs)."""

Image.init()  # `formats` below finds only plugins that are loaded

# Without EPS and its kind, which Pillow hands to other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "PPM", "TIFF", "GIF")


class BrokenImage(ValueError):
    """Bytes that are no image, or not a whole one; the message is the reason."""


def decode(data: bytes) -> torch.Tensor:
    """Decode a file's bytes to RGB: uint8 (3, H, W), grey images repeated over the channels, 16 bits scaled to 8.

    Transparency is dropped and the EXIF orientation ignored, as in the pipelines that published accuracies come from
    (torchvision's, with Pillow's `convert("RGB")`). Raises BrokenImage, whatever is wrong with the bytes.
    """
    if not data:
        raise BrokenImage("the file is empty")
    if data[:2] == b"\xff\xd8" and (shape := _jpeg_shape(data)) is not None and shape[2] in (1, 3):
        _check_size(*shape[:2])
        try:
            image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
            assert isinstance(image, torch.Tensor)
            return image
        except RuntimeError:
            pass  # Pillow reads some files that torchvision refuses, and gives better reasons for the others
    return _decode_by_pillow(data)


def _decode_by_pillow(data: bytes) -> torch.Tensor:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _check_size(image.height, image.width)
                pixels = _rgb(image)
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
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        return np.repeat(((grey * 255 + 32767) // 65535).astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise BrokenImage(f"{width} x {height} pixels are more than the {MAX_PIXELS:,} that are read")


def _jpeg_shape(data: bytes) -> tuple[int, int, int] | None:
    """Height, width and channels from a JPEG's frame header (ITU-T T.81, B.2.2); None where there is none in place."""
    at = 2
    while at + 9 < len(data):
        if data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, channels = struct.unpack_from(">HHB", data, at + 5)
            return height, width, channels
        elif marker in (0x01, *range(0xD0, 0xD9)):  # markers that stand alone
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
