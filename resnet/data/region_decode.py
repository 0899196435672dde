"""Decoding only what a crop takes of a JPEG, by libjpeg-turbo's partial decoding in NVIDIA's nvImageCodec, on the CPU.

The pixels are those of `decode`: libjpeg-turbo passes over the rest of the image without inverse transforms, upsampling
and colours. An image that is damaged, small or no such JPEG is decoded whole.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from resnet.data.batches import MicroBatches
from resnet.data.decode import check_size, decode, is_whole, jpeg_header
from resnet.data.draws import Drawn
from resnet.data.sources.registry import Source
from resnet.data.transforms import Crop

_SMALL = 32
"""Below so many pixels a side libjpeg-turbo smooths the colours of a part otherwise than of the whole."""


class Undecoded(NamedTuple):
    """A JPEG that is whole, as far as its header and its end tell."""

    data: bytes
    height: int
    width: int


class RegionBatches(MicroBatches):
    """Micro-batches that decode of a training image what is cut out; the same to the last bit."""

    def _read(self, source: Source, index: int) -> Any:
        data = source.read(index)
        return opened(data) if isinstance(data, bytes) else data

    def _size(self, image: Any) -> tuple[int, int]:
        return (image.height, image.width) if isinstance(image, Undecoded) else super()._size(image)

    def _crop(self, crop: Crop, image: Any, drawn: Drawn) -> torch.Tensor:
        if not isinstance(image, Undecoded):
            return crop(image, drawn)
        part = decode_region(image.data, drawn.crop)
        if part is None:
            return crop(decode(image.data), drawn)
        return crop(part, drawn._replace(crop=(0, 0, *part.shape[1:])))

    def _prepared(self, image: Any) -> torch.Tensor:
        return super()._prepared(decode(image.data) if isinstance(image, Undecoded) else image)


def opened(data: bytes) -> Undecoded | torch.Tensor:
    """A JPEG of which a part can be decoded, or the decoded image. Raises BrokenImage."""
    header = jpeg_header(data)
    if header is None or not header.common or min(header[:2]) < _SMALL or not is_whole(data, header):
        return decode(data)
    check_size(header.height, header.width)
    return Undecoded(data, header.height, header.width)


def check_region_decoder() -> None:
    """Raise ValueError where there is no decoder of regions here."""
    try:
        _decoder()
    except (ImportError, OSError, RuntimeError) as error:
        raise ValueError(
            f"data.decode=region needs nvImageCodec, which cannot be loaded ({error}): pip install "
            "'resnet-launch[fast]', or use data.decode=cpu, which gives the same pixels"
        ) from error


def decode_region(data: bytes, box: tuple[int, int, int, int]) -> torch.Tensor | None:
    """Pixels uint8 (3, height, width) of a box (top, left, height, width) of a JPEG; None where it cannot be read."""
    codec, decoder, parameters = _decoder()
    top, left, height, width = box
    try:
        region = codec.Region(top, left, top + height, left + width)
        image = decoder.decode(codec.CodeStream(data).get_sub_code_stream(region=region), params=parameters)
    except RuntimeError:
        return None
    pixels = None if image is None else np.asarray(image)
    return torch.from_numpy(pixels).permute(2, 0, 1) if pixels is not None and pixels.ndim == 3 else None


@cache
def _decoder() -> tuple[Any, Any, Any]:
    """A process's own: it would not survive a fork."""
    # It tells of each GPU library that it does not find, and of each broken image.
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    codec: Any = importlib.import_module("nvidia.nvimgcodec")
    backends, cpu = [codec.Backend(codec.CPU_ONLY)], codec.NVIMGCODEC_DEVICE_CPU_ONLY
    decoder = codec.Decoder(device_id=cpu, max_num_cpu_threads=1, backends=backends)
    return codec, decoder, codec.DecodeParams(apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB)
