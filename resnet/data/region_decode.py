"""Decoding only what a crop takes of a JPEG, by libjpeg-turbo's partial decoding in NVIDIA's nvImageCodec, on the CPU.

The pixels are those of `decode`: libjpeg-turbo passes over the rest of the image without inverse transforms, upsampling
and colours. An image that is damaged, progressive, small or no such JPEG is decoded whole.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from typing import Any

import numpy as np
import torch

from resnet.data.draws import Drawn
from resnet.data.undecoded import Undecoded, UndecodedBatches

_VERBOSITY = "PYNVIMGCODEC_VERBOSITY"


class RegionBatches(UndecodedBatches):
    """Micro-batches that decode of a training image what is cut out; the same to the last bit."""

    def _crop(self, size: int, image: Any, drawn: Drawn) -> torch.Tensor:
        # A part that is one pixel wide has other colours, in 4:2:0.
        if isinstance(image, Undecoded) and drawn.crop[3] > 1:
            part = decode_region(image.data, drawn.crop)
            if part is not None:
                return super()._crop(size, part, drawn._replace(crop=(0, 0, *part.shape[1:])))
        return super()._crop(size, image, drawn)


def check_region_decoder() -> None:
    """Raise ValueError where there is no decoder of regions here."""
    try:
        _decoder()
        _decoder.cache_clear()
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
    """A process's own."""
    codec = _codec()
    backends, cpu = [codec.Backend(codec.CPU_ONLY)], codec.NVIMGCODEC_DEVICE_CPU_ONLY
    decoder = codec.Decoder(device_id=cpu, max_num_cpu_threads=1, backends=backends)
    return codec, decoder, codec.DecodeParams(apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB)


def _codec() -> Any:
    """The package, silent: it tells of each GPU library that it does not find, and of each broken image."""
    before = os.environ.get(_VERBOSITY)
    os.environ.setdefault(_VERBOSITY, "0")
    try:
        return importlib.import_module("nvidia.nvimgcodec")
    finally:
        if before is None:
            del os.environ[_VERBOSITY]
