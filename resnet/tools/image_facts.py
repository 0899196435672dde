"""What is known of each image of a data set: read and decoded once by worker processes, and kept as a small row."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
import xxhash
from PIL import ExifTags, Image
from torch.nn import functional

from resnet.data.arrays import NPY, BrokenImage
from resnet.data.bands import visible
from resnet.data.batches import Prepared, read_image
from resnet.data.loader import Loader
from resnet.data.sources.banded import read_both
from resnet.data.sources.registry import evenly
from resnet.data.sources.source import Source

_CHUNK = 64
_SAMPLED = 64
"""Images by which mean and standard deviation are told."""
_LEVELS = np.arange(256) / 255
_AHEAD = 4

FACTS = np.dtype(
    [
        ("file", "u8"),
        ("pixels", "u8"),
        ("shape", "u8"),
        ("colours", "u1", 12),
        ("bytes", "u8"),
        ("height", "u4"),
        ("width", "u4"),
        ("format", "S4"),
        ("mode", "S6"),
        ("orientation", "u1"),
        ("progressive", "?"),
        ("alpha", "?"),
    ]
)
"""Of an image: the digests (XXH3, 64 bits) of its file and of its decoded pixels; shape and colours, as `_sketch` has
them; the file's bytes; height and width of the whole image in pixels, 0 where it was not read; Pillow's names of its
format ("": it comes as pixels) and mode; the EXIF orientation (1: upright)."""


class Chunk(NamedTuple):
    """Consecutive images of one of the sources."""

    which: int
    start: int
    facts: np.ndarray
    """FACTS (n,)."""
    broken: dict[int, str]
    """By index in the source: why an image cannot be read."""


class Facts(NamedTuple):
    """All images of a source."""

    rows: np.ndarray
    """FACTS (n,); zeros for images that are broken, or were not come to."""
    broken: dict[int, str]


class Levels(NamedTuple):
    """Of the channels of images, on a scale of 0 to 1, each image having the same share."""

    images: int
    mean: list[float]
    std: list[float]


def levels_of(source: Source) -> Levels | None:
    """Mean and standard deviation of each channel over a sample, as augment.mean and augment.std; None: of no image."""
    moments = []
    for index in evenly(len(source), min(_SAMPLED, len(source))).tolist():
        with contextlib.suppress(BrokenImage, OSError):
            shares = [
                np.bincount(plane.ravel(), minlength=256) / plane.size for plane in read_image(source, index).numpy()
            ]
            moments.append(np.stack([shares @ _LEVELS, shares @ _LEVELS**2]))
    if not moments:
        return None
    mean, square = np.mean(moments, axis=0)
    return Levels(len(moments), mean.tolist(), np.sqrt(square - mean**2).tolist())


Watch = Callable[[Iterator[Chunk], int], Iterator[Chunk]]


def read_facts(sources: Sequence[Source], workers: int, watch: Watch) -> tuple[list[Facts], bool]:
    """Read all images of all sources; returns their facts, and whether Ctrl-C ended it early.

    watch: is given the chunks as they come and the number of all images, and gives the chunks on.
    """
    found = [Facts(np.zeros(len(source), FACTS), {}) for source in sources]
    keys = [(which, at) for which, source in enumerate(sources) for at in range(0, len(source), _CHUNK)]
    loader = Loader(_Chunks(sources), keys, torch.device("cpu"), workers, _AHEAD)  # pyright: ignore[reportArgumentType]
    try:
        for chunk in watch(cast(Iterator[Chunk], iter(loader)), sum(map(len, sources))):
            rows, broken = found[chunk.which]
            rows[chunk.start : chunk.start + len(chunk.facts)] = chunk.facts
            broken.update(chunk.broken)
    except KeyboardInterrupt:
        return found, True
    finally:
        loader.end()
    return found, False


class _Chunks(Prepared):
    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def __getitem__(self, key: tuple[int, int]) -> Chunk:
        which, start = key
        source, broken = self._sources[which], {}
        facts = np.zeros(min(_CHUNK, len(source) - start), FACTS)
        for at in range(len(facts)):
            try:
                facts[at] = _facts(*read_both(source, start + at))
            except BrokenImage as error:
                broken[start + at] = str(error)
            except OSError as error:
                broken[start + at] = error.strerror or str(error)
        return Chunk(which, start, facts, broken)


def _facts(data: bytes | torch.Tensor, image: torch.Tensor) -> tuple[object, ...]:
    """The row of an image, of its file and its pixels uint8 (C, H, W)."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    height, width, _ = pixels.shape
    digest = xxhash.xxh3_64_intdigest(pixels.data, seed=width)
    file = xxhash.xxh3_64_intdigest(data) if isinstance(data, bytes) else digest
    size = len(data) if isinstance(data, bytes) else data.nbytes
    header = _header(data) if isinstance(data, bytes) else ("", "RGB", 1, False, False)
    return file, digest, *_sketch(image), size, height, width, *header


def _sketch(image: torch.Tensor) -> tuple[int, np.ndarray]:
    """uint8 (C, H, W) -> 60 bits of its coarse shape and 12 mean colours: resizing and compressing hardly change them.

    The bits say which of two neighbours is brighter, as in the dHash (Krawetz 2013), among 6 x 6 fields, along rows and
    columns; the colours are those of the four quarters.
    """
    image = torch.from_numpy(visible(image.permute(1, 2, 0).numpy())).permute(2, 0, 1)
    fields = functional.interpolate(image[None], (6, 6), mode="bilinear", antialias=True)[0].numpy()
    grey = np.tensordot((299, 587, 114), fields.astype(np.int64), 1)
    brighter = np.concatenate([(grey[:, 1:] > grey[:, :-1]).ravel(), (grey[1:] > grey[:-1]).ravel()])
    colours = fields.reshape(3, 2, 3, 2, 3).mean((2, 4)).round().astype(np.uint8)
    return int.from_bytes(np.packbits(brighter).tobytes(), "big"), colours.ravel()


def _header(data: bytes) -> tuple[str, str, int, bool, bool]:
    """Format, mode, orientation, and whether it is progressive and has transparency, of bytes that can be decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
                progressive = bool(image.info.get("progressive"))
                return image.format or "", image.mode, _orientation(image), progressive, alpha
    except Exception:  # some files that can be decoded have headers that Pillow chokes on, in any way
        kind = "JPEG" if data[:2] == b"\xff\xd8" else "NPY" if data.startswith(NPY) else ""
        return kind, "", 1, False, False


def _orientation(image: Image.Image) -> int:
    # Pillow turns TIFF files itself as it decodes them.
    value = 1 if image.format == "TIFF" else image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in range(1, 9) else 1
