"""JPEGs decoded by the GPU, many at a time (torchcodec's nvJPEG), with the CPU's decoder for what it does not take.

The pixels are not those of the CPU to the last bit: nvJPEG enlarges the colours of 4:2:0 and its kind in another way.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence
from functools import cache

import torch
from PIL import Image
from torchcodec.decoders import decode_jpeg

from resnet.data.arrays import BrokenImage
from resnet.data.decode import decode, jpeg_header, without_exif


def decode_on(files: Sequence[bytes], device: torch.device) -> list[torch.Tensor | BrokenImage]:
    """Decode files to RGB on a device: for each a uint8 (3, H, W), or why there is none.

    On a GPU sequential JPEGs, grey or YCbCr, are decoded there; what it refuses of them, everything
    else, and everything on a CPU, as `resnet.data.decode.decode` does. The host waits for the current stream.
    """
    headers = [jpeg_header(file) if device.type == "cuda" else None for file in files]
    there = [number for number, header in enumerate(headers) if header is not None and header.common]
    ready = [without_exif(files[number], headers[number]) for number in there]  # pyright: ignore[reportArgumentType]
    by_gpu = dict(zip(there, _by_nvjpeg(ready, device), strict=True))
    found: list[torch.Tensor | BrokenImage] = []
    for number, (file, header) in enumerate(zip(files, headers, strict=True)):
        image = by_gpu.get(number)
        sound = image is not None and header is not None and tuple(image.shape) == (3, header.height, header.width)
        if number in by_gpu and not sound:
            _tell_of_refusals()
        found.append(image if sound else _by_cpu(file, device))  # pyright: ignore[reportArgumentType]
    return found


def _by_nvjpeg(files: Sequence[bytes | bytearray], device: torch.device) -> list[torch.Tensor | None]:
    """In one call; as a bad file fails it, halves are tried until what fails is alone, for which there is None."""
    if not files:
        return []
    try:
        return list(decode_jpeg(list(files), device=device))
    except RuntimeError as error:
        if re.search("memory|alloc", str(error), re.IGNORECASE):
            raise  # not by the files
        if len(files) == 1:
            return [None]
        half = len(files) // 2
        return [*_by_nvjpeg(files[:half], device), *_by_nvjpeg(files[half:], device)]


@cache
def _tell_of_refusals() -> None:
    """Once a process."""
    print("data.decode=gpu: the GPU's decoder refuses some files, which the CPU decodes", file=sys.stderr, flush=True)


def _by_cpu(file: bytes, device: torch.device) -> torch.Tensor | BrokenImage:
    try:
        return decode(file).to(device)
    except BrokenImage as error:
        return error


@cache
def check_gpu_decodes(device: torch.device) -> None:
    """Raise ValueError where torchcodec cannot decode on a GPU, as that of a CPU-only build cannot."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    try:
        decode_jpeg([file.getvalue()], device=device)
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["?"])[0]
        raise ValueError(
            f"data.decode=gpu: torchcodec cannot decode on {device} ({reason}): use data.decode=cpu"
        ) from None
