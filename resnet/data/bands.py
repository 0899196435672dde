"""Images of other channels than red, green and blue: grey ones and those of 2, 4, 12 ... bands, brought to 8 bits."""

from __future__ import annotations

import importlib
import io
import math
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from resnet.data.decode import BrokenImage, check_size, decode, decode_by_pillow, jpeg_header, scaled_to_8_bits

NPY = b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_LONGEST_HEADER = 10_000


class UnfitImage(BrokenImage):
    """A whole image that is not as the keys of the recipe say."""


def decode_channels(data: bytes, channels: int, pixel_max: int | None) -> torch.Tensor:
    """Decode a file's bytes to uint8 (channels, H, W).

    One channel: of a .npy file its only band; of any other file the luma (ITU-R 601, as Pillow's `convert("L")`) of
    the RGB that `decode` gives. More: the bands of a .npy or TIFF file, and of what else Pillow reads those that it
    has. Of 16 bits pixel_max becomes 255. Raises BrokenImage; UnfitImage for other channels, or what is no uint8 or
    uint16.
    """
    if data.startswith(NPY):
        return _of_array(_npy(data), channels, pixel_max)
    if channels == 1:
        if jpeg_header(data) is not None:
            return luma(decode(data))
        return decode_by_pillow(data, partial(_grey, pixel_max=pixel_max))
    if data[:4] in _TIFF:
        return _of_array(_tiff(data, channels), channels, pixel_max)
    return decode(data) if channels == 3 else decode_by_pillow(data, partial(_bands, channels=channels))


def luma(image: torch.Tensor) -> torch.Tensor:
    """uint8 (3, H, W) -> (1, H, W): ITU-R 601, in Pillow's own rounding."""
    return torch.from_numpy(np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))).unsqueeze(0)


def to_channels(image: torch.Tensor, channels: int) -> torch.Tensor:
    """uint8 (C, H, W) with so many channels. Raises UnfitImage where it has neither them nor, for grey, three."""
    if len(image) == channels:
        return image
    if (len(image), channels) == (3, 1):
        return luma(image)
    raise _of_others(len(image), channels)


def visible(pixels: np.ndarray) -> np.ndarray:
    """uint8 (..., C) -> (..., 3), to be looked at: the first three bands, or the first in grey."""
    channels = pixels.shape[-1]
    return pixels if channels == 3 else pixels[..., :3] if channels > 3 else pixels[..., :1].repeat(3, axis=-1)


def _of_others(found: int, channels: int) -> UnfitImage:
    return UnfitImage(f"has {found} channel{'s' * (found != 1)}, and model.in_channels is {channels}")


def _grey(image: Image.Image, pixel_max: int | None) -> np.ndarray:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return scaled_to_8_bits(np.asarray(image), pixel_max or 65535)[..., None]
    # By way of RGB from what has other colours, as its luma is what `decode` gives.
    plain = image if image.mode in ("1", "L", "LA", "RGB", "RGBA") else image.convert("RGB")
    return np.array(plain.convert("L"))[..., None]


def _bands(image: Image.Image, channels: int) -> np.ndarray:
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if (found := len(image.getbands())) != channels:
        raise _of_others(found, channels)
    return np.array(image)


def _of_array(values: np.ndarray, channels: int, pixel_max: int | None) -> torch.Tensor:
    """(H, W, C) or (C, H, W), told by which axis is the channels', or (H, W) for one -> uint8 (C, H, W)."""
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or channels not in (values.shape[-1], values.shape[0]) or not values.size:
        shape = " x ".join(map(str, values.shape))
        raise UnfitImage(f"has the shape {shape}, in which neither the first axis nor the last is {channels} channels")
    # Where both fit, the last axis is the channels'.
    values = values if values.shape[-1] == channels else values.transpose(1, 2, 0)
    check_size(*values.shape[:2])
    if values.dtype == np.uint8:
        pixels = np.array(values, order="C")
    elif values.dtype.kind + str(values.dtype.itemsize) != "u2":
        raise UnfitImage(f"has values of type {values.dtype}: uint8 and uint16 are read")
    elif pixel_max is None:
        raise UnfitImage("has values of 16 bits: set data.pixel_max to the one that becomes 255")
    else:
        pixels = np.ascontiguousarray(scaled_to_8_bits(values, pixel_max))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _npy(data: bytes) -> np.ndarray:
    """A view of the array in a .npy file's bytes; nothing is unpickled."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, kind = read(file, max_header_size=_LONGEST_HEADER)
    except Exception as error:  # numpy parses the header as Python, whose errors are many
        raise BrokenImage(f"not a whole .npy file ({error})") from None
    if kind.hasobject:
        raise UnfitImage("holds Python objects, which are not loaded: uint8 and uint16 are read")
    count, start = math.prod(shape), file.tell()
    if min(shape, default=1) < 0 or len(data) - start < count * kind.itemsize:
        raise BrokenImage(f"an array of {count:,} values is cut off after {max(0, len(data) - start):,} bytes")
    return np.frombuffer(data, kind, count, start).reshape(shape, order="F" if by_columns else "C")


def _tiff(data: bytes, channels: int) -> np.ndarray:
    try:
        tifffile = importlib.import_module("tifffile")
    except ImportError:
        raise UnfitImage("bands of TIFF files are read by tifffile: pip install 'resnet-launch[bands]'") from None
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            series: Any = file.series[0]
            check_size(math.prod(series.shape) // channels, 1)
            return series.asarray(maxworkers=1)
    except BrokenImage:
        raise
    except Exception as error:  # on hostile bytes, of any kind
        raise BrokenImage(str(error) or type(error).__name__) from None
