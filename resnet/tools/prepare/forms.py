"""The forms in which images are stored."""

from __future__ import annotations

import io
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from resnet.data.decode import decode


class Form(NamedTuple):
    """How images are stored; none is ever enlarged."""

    kind: Literal["keep", "max_side", "short_side", "raw"] = "keep"
    """keep: as they are; max_side, short_side: as JPEG, that side at most `side`; raw: pixels, the shorter side so."""
    side: int | None = None
    quality: int | None = None


class Stored(NamedTuple):
    data: bytes
    height: int = 0
    """Of raw pixels; 0: the bytes are an image file's."""
    width: int = 0

    def image(self) -> bytes | torch.Tensor:
        """What a run reads of it: the bytes of a file, or uint8 (C, H, W)."""
        if not self.height:
            return self.data
        pixels = torch.frombuffer(bytearray(self.data), dtype=torch.uint8)
        return pixels.view(self.height, self.width, -1).permute(2, 0, 1)


def store(form: Form, image: bytes | torch.Tensor, pixels: torch.Tensor | None = None) -> Stored:
    """What is stored of an image file's bytes, or of pixels uint8 (3, H, W).

    pixels: uint8 (C, H, W), what the image is decoded to; None: RGB. What comes as pixels is stored as PNG where it is
    not to be changed. Raises arrays.BrokenImage, also where bytes are kept.
    """
    if pixels is None:
        pixels = decode(image) if isinstance(image, bytes) else image
    smaller = None if form.side is None else _smaller(pixels, form.side, form.kind == "max_side")
    if form.kind == "raw":
        height, width = (pixels if smaller is None else smaller).shape[1:]
        return Stored(_rows(pixels if smaller is None else smaller).tobytes(), height, width)
    if smaller is not None:
        sampled = {"subsampling": "4:2:0"} if len(smaller) == 3 else {}
        # 4:4:4 would make the files a fifth larger, and the mean error of a crop 5% smaller.
        return Stored(_file(smaller, "JPEG", quality=form.quality, **sampled))
    return Stored(image if isinstance(image, bytes) else _file(image, "PNG"))


def _smaller(pixels: torch.Tensor, side: int, longer: bool) -> torch.Tensor | None:
    """An image resized as in training (bilinear, antialiased); None where that would not make it smaller."""
    height, width = pixels.shape[1:]
    reference = max(height, width) if longer else min(height, width)
    if side >= reference:
        return None
    # The longer side is cut as torchvision's Resize(side) does, so that this resizing is the one of the evaluation.
    size = [
        max(1, round(length * side / reference) if longer else length * side // reference) for length in (height, width)
    ]
    return functional.resize(pixels, size, antialias=True)


def _rows(pixels: torch.Tensor):
    """uint8 (H, W, C), in that order in memory."""
    return pixels.permute(1, 2, 0).contiguous().numpy()


def _file(pixels: torch.Tensor, kind: str, **options) -> bytes:
    file = io.BytesIO()
    rows = _rows(pixels)
    Image.fromarray(rows[..., 0] if len(pixels) == 1 else rows).save(file, kind, **options)
    return file.getvalue()
