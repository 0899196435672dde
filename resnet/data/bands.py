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

from resnet.data.arrays import (
    NPY,
    BrokenImage,
    UnfitImage,
    check_numbers,
    check_size,
    decode_npy,
    of_array,
    scaled_to_8_bits,
)
from resnet.data.decode import decode, decode_by_pillow, jpeg_header

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def decode_channels(data: bytes, channels: int, pixel_max: int | None) -> torch.Tensor:
    """Decode a file's bytes to uint8 (channels, H, W).

    One channel: of a .npy file its only band; of any other file the luma (ITU-R 601, as Pillow's `convert("L")`) of
    the RGB that `decode` gives. More: the bands of a .npy or TIFF file, and of what else Pillow reads those that it
    has. Of 16 bits pixel_max becomes 255. Raises BrokenImage; UnfitImage for other channels, or what is no uint8 or
    uint16.
    """
    if data.startswith(NPY):
        return decode_npy(data, channels, pixel_max)
    if channels == 1:
        if jpeg_header(data) is not None:
            return luma(decode(data))
        return decode_by_pillow(data, partial(_grey, pixel_max=pixel_max))
    if data[:4] in _TIFF:
        return of_array(_tiff(data, channels), channels, pixel_max)
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


def _tiff(data: bytes, channels: int) -> np.ndarray:
    try:
        tifffile = importlib.import_module("tifffile")
    except ImportError:
        raise UnfitImage("bands of TIFF files are read by tifffile: pip install 'resnet-launch[bands]'") from None
    try:
        # These formats name other files, which would be read with it.
        with tifffile.TiffFile(io.BytesIO(data), is_ome=False, is_mmstack=False, is_ndtiff=False) as file:
            series: Any = file.series[0]
            check_numbers(series.dtype)
            check_size(math.prod(series.shape) // channels, 1)
            return series.asarray(maxworkers=1)
    except BrokenImage:
        raise
    except Exception as error:  # on hostile bytes, of any kind
        raise BrokenImage(str(error) or type(error).__name__) from None
