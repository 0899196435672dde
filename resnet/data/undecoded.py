"""JPEGs that are not decoded before it is drawn what is cropped from them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from resnet.data.arrays import check_size
from resnet.data.batches import MicroBatches
from resnet.data.decode import decode, end_of, jpeg_header
from resnet.data.draws import Drawn
from resnet.data.sources.source import Source

_SMALL = 32
"""Below so many pixels a side libjpeg-turbo smooths the colours of a part otherwise than of the whole."""


class Undecoded(NamedTuple):
    """A JPEG in which nothing is damaged that could be seen without decoding it."""

    data: bytes
    """Up to its end."""
    height: int
    width: int
    drawn: Drawn = Drawn((0, 0, 0, 0), False, False, [])
    """Of training images that are cropped elsewhere."""


def opened(data: bytes) -> Undecoded | torch.Tensor:
    """A JPEG that all decoders take, and make something of as `decode` does, or the decoded image.

    Decoded is what is damaged, progressive (whose many scans can hide damage), small or no such JPEG. Raises
    BrokenImage.
    """
    header = jpeg_header(data)
    if header is None or not header.common or min(header.height, header.width) < _SMALL:
        return decode(data)
    end = end_of(data, header)
    if end is None:
        return decode(data)
    check_size(header.height, header.width)
    return Undecoded(data[:end], header.height, header.width)


class UndecodedBatches(MicroBatches):
    """Micro-batches of such files; here they are decoded whole, in the end."""

    def _read(self, source: Source, index: int) -> Any:
        data = source.read(index)
        return opened(data) if isinstance(data, bytes) else data

    def _size(self, image: Any) -> tuple[int, int]:
        return (image.height, image.width) if isinstance(image, Undecoded) else super()._size(image)

    def _crop(self, size: int, image: Any, drawn: Drawn) -> Any:
        return super()._crop(size, _decoded(image), drawn)

    def _prepared(self, image: Any) -> Any:
        return super()._prepared(_decoded(image))


def _decoded(image: Undecoded | torch.Tensor) -> torch.Tensor:
    return decode(image.data) if isinstance(image, Undecoded) else image
