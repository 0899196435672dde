"""Sources whose images are decoded to other channels than red, green and blue."""

from __future__ import annotations

import numpy as np
import torch

from resnet.data.arrays import BrokenImage, UnfitImage
from resnet.data.bands import decode_channels, to_channels
from resnet.data.decode import decode
from resnet.data.sources.source import Source

_CHECKED = 8


class Banded:
    """The images of a source, decoded: uint8 (channels, H, W)."""

    def __init__(self, files: Source, channels: int, pixel_max: int | None) -> None:
        self.files, self._channels, self._pixel_max = files, channels, pixel_max
        """files: the source of what is decoded here."""
        self.labels, self.classes, self.targets = files.labels, files.classes, getattr(files, "targets", None)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> torch.Tensor:
        return self.decoded(self.files.read(index))

    def decoded(self, data: bytes | torch.Tensor) -> torch.Tensor:
        """What `files` reads, as `read` gives it. Raises BrokenImage."""
        if isinstance(data, bytes):
            return decode_channels(data, self._channels, self._pixel_max)
        return to_channels(data, self._channels)

    def over(self, files: Source) -> Banded:
        """The same of another source of files."""
        return Banded(files, self._channels, self._pixel_max)

    def describe(self, index: int) -> str:
        return self.files.describe(index)

    def check(self, count: int = _CHECKED) -> None:
        """Raise ValueError where one of so many images, spread over all, is not as the keys say."""
        places = (2 * np.arange(count) + 1) * len(self) // (2 * count)
        for index in sorted({*places.tolist()}) if len(self) else ():
            try:
                self.read(index)
            except UnfitImage as error:
                raise ValueError(f"{self.describe(index)} {error}") from None
            except (BrokenImage, OSError):
                continue  # told when its turn comes


def read_both(source: Source, index: int) -> tuple[bytes | torch.Tensor, torch.Tensor]:
    """What an image is kept as (see `Source.read`), and its pixels. Raises OSError or BrokenImage."""
    if isinstance(source, Banded):
        data = source.files.read(index)
        return data, source.decoded(data)
    data = source.read(index)
    return data, decode(data) if isinstance(data, bytes) else data


def of_channels(source: Source, channels: int, pixel_max: int | None) -> Source:
    """A source as it is where its images are read as RGB, else decoded to so many channels.

    pixel_max: see `data.pixel_max`.
    """
    if isinstance(source, Banded) or (channels == 3 and pixel_max is None):
        return source
    return Banded(source, channels, pixel_max)
