"""Arrays of numbers as images: those of .npy files, and what is wrong with an image."""

from __future__ import annotations

import io
import math

import numpy as np
import torch

from recipes.text import cut

NPY = b"\x93NUMPY"
_LONGEST_HEADER = 10_000
_LONGEST_TOLD = 80
"""Characters of what a file says, in a message."""
MAX_PIXELS = 178_956_970
"""Images with more pixels are refused before memory is taken for them (as Pillow refuses decompression bombs)."""


class BrokenImage(ValueError):
    """Bytes that are no image, or not a whole one; the message is the reason."""


class UnfitImage(BrokenImage):
    """A whole image that is not as the keys of the recipe say."""


def decode_npy(data: bytes, channels: int, pixel_max: int | None) -> torch.Tensor:
    """A .npy file's bytes as uint8 (channels, H, W); nothing is unpickled. See `of_array`."""
    return of_array(_npy(data), channels, pixel_max)


def of_array(values: np.ndarray, channels: int, pixel_max: int | None) -> torch.Tensor:
    """(H, W, C) or (C, H, W), told by which axis is the channels', or (H, W) for one -> uint8 (C, H, W).

    Of 16 bits pixel_max becomes 255. Raises UnfitImage for other channels, or what is no uint8 or uint16.
    """
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or channels not in (values.shape[-1], values.shape[0]) or not values.size:
        shape = " x ".join(map(str, values.shape))
        raise UnfitImage(f"has the shape {shape}, in which neither the first axis nor the last is {channels} channels")
    check_numbers(values.dtype)
    # Where both fit, the last axis is the channels'.
    values = values if values.shape[-1] == channels else values.transpose(1, 2, 0)
    check_size(*values.shape[:2])
    if values.dtype == np.uint8:
        pixels = np.array(values, order="C")
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
        raise BrokenImage(f"not a whole .npy file ({cut(str(error), _LONGEST_TOLD)})") from None
    check_numbers(kind)
    if len(shape) not in (2, 3) or not all(type(size) is int and 0 < size <= MAX_PIXELS for size in shape):
        raise UnfitImage(f"has {len(shape)} axes, and an image has two or three, each of 1 to {MAX_PIXELS:,}")
    count, start = math.prod(shape), file.tell()
    if len(data) - start < count * kind.itemsize:
        raise BrokenImage(f"an array of {count:,} values is cut off after {max(0, len(data) - start):,} bytes")
    return np.frombuffer(data, kind, count, start).reshape(shape, order="F" if by_columns else "C")


def check_numbers(kind: np.dtype) -> None:
    """Raise UnfitImage for a type of values that is not read."""
    if kind.hasobject:
        raise UnfitImage("holds Python objects, which are not loaded: uint8 and uint16 are read")
    if kind.kind != "u" or kind.itemsize > 2:
        raise UnfitImage(f"has values of type {cut(str(kind), _LONGEST_TOLD)}: uint8 and uint16 are read")


def scaled_to_8_bits(values: np.ndarray, largest: int) -> np.ndarray:
    """Values from 0 to the largest as uint8, rounded; what is above counts as the largest."""
    return ((values.astype(np.int64).clip(0, largest) * 255 + largest // 2) // largest).astype(np.uint8)


def check_size(height: int, width: int) -> None:
    """Raise BrokenImage for more than MAX_PIXELS."""
    if height * width > MAX_PIXELS:
        raise BrokenImage(f"{width} x {height} pixels are more than the {MAX_PIXELS:,} that are read")
