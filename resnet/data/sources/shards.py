"""Shards that `resnet prepare` wrote: parquet files, and an index by which each image is read as a slice of its file.

In OUT: index.json (see `Index`); index-train.npy and index-validation.npy, a `RECORD` an image; and the shards, as
data/train-00000-of-00147.parquet, uncompressed and in plain encoding, so that an image's bytes lie in one piece.
"""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, NonNegativeInt, ValidationError

from recipes.schema.data import ShardsData
from resnet.data.sources.files import existing

FORMAT = 1
INDEX, UNFINISHED = "index.json", "unfinished.json"
SPLITS = ("train", "validation")

RECORD = np.dtype(
    [
        ("shard", "<i4"),
        ("offset", "<i8"),  # from the beginning of the shard's file, in bytes
        ("length", "<i4"),
        ("height", "<i4"),  # of raw pixels, uint8 (height, width, C); 0: the bytes are an image file's
        ("width", "<i4"),
        ("label", "<i4"),
        ("name_offset", "<i8"),
        ("name_length", "<i4"),
    ]
)
"""Where an image and its name (UTF-8) lie, and what class it is of."""


class File(BaseModel):
    """A file of the prepared data."""

    name: str
    """From the folder of the index on."""
    bytes: NonNegativeInt
    sha256: str


class Broken(BaseModel):
    """An image of the source that could not be read and was left out."""

    image: str
    reason: str


class Split(BaseModel):
    """The images of training or of validation."""

    images: NonNegativeInt
    per_class: list[NonNegativeInt]
    records: File
    files: list[File]
    broken: list[Broken]


class Index(BaseModel):
    """What index.json holds."""

    format: int
    made: dict[str, Any]
    """From which source, and in which form."""
    classes: list[str]
    train: Split
    validation: Split

    def split(self, name: str) -> Split:
        return self.train if name == "train" else self.validation


class Shards:
    """A source (see `source.Source`) of the images of one split. Raises ValueError where files are not as indexed."""

    def __init__(self, folder: Path, split: str, index: Index) -> None:
        self._split, self.classes = index.split(split), index.classes
        self._folder = folder
        for number, file in enumerate(self._split.files):
            if file.name != shard_name(split, number, len(self._split.files)):
                raise ValueError(f"{folder / INDEX} is damaged: {file.name!r} is no name of a shard")
            check_size(folder, file)
        if self._split.records.name != records_name(split):
            raise ValueError(f"{folder / INDEX} is damaged: {self._split.records.name!r} is no name of records")
        check_size(folder, self._split.records)
        self._files = [str(folder / file.name) for file in self._split.files]
        self._start()
        self._check()
        self.labels = self._records["label"].astype(np.int64)
        counts = np.bincount(self.labels, minlength=len(self.classes)).tolist()
        if counts != self._split.per_class or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"{folder / INDEX} is damaged: its classes are not those of {self._split.records.name}")

    def _start(self) -> None:
        path = self._folder / self._split.records.name
        try:
            self._records = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except Exception as error:  # numpy parses the header as Python, whose errors are many
            raise ValueError(f"{path} is damaged ({error})") from None
        self._opened: dict[int, io.FileIO] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_records", "_opened")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _check(self) -> None:
        """Raise ValueError where a record leads out of the files or the classes."""
        found, path = self._records, self._folder / self._split.records.name
        if found.dtype != RECORD or found.shape != (self._split.images,):
            raise ValueError(f"{path} is damaged: it holds no records of {self._split.images:,} images")
        sizes = np.array([file.bytes for file in self._split.files], dtype=np.int64)
        right = (found["shard"] >= 0) & (found["shard"] < len(sizes))
        if right.all():
            room = sizes[found["shard"]]
            for offset, length in (("offset", "length"), ("name_offset", "name_length")):
                right &= (found[offset] >= 0) & (found[length] >= 0) & (found[length] <= room - found[offset])
        height, width = found["height"].astype(np.int64), found["width"].astype(np.int64)
        pixels = np.maximum(height * width, 1)
        right &= (height == 0) | ((height > 0) & (width > 0) & (found["length"] >= pixels))
        right &= (height == 0) | (found["length"] % pixels == 0)
        right &= (found["label"] >= 0) & (found["label"] < len(self.classes))
        if not right.all():
            raise ValueError(f"{path} is damaged: image {int(np.argmin(right))} is not where it says")

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes | torch.Tensor:
        """An image: the bytes of its file, or uint8 pixels (C, H, W). Raises OSError."""
        shard, offset, length, height, width, *_ = self._records[index].item()
        if not height:
            return self._bytes(shard, offset, length)
        pixels = np.empty((height, width, length // (height * width)), dtype=np.uint8)
        if os.preadv(self._file(shard), [pixels.data], offset) != length:
            raise self._shorter(shard)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def describe(self, index: int) -> str:
        """The shard and the name that the image had in the source."""
        shard, *_, offset, length = self._records[index].item()
        with contextlib.suppress(OSError):
            return f"{self._files[shard]}:{self._bytes(shard, offset, length).decode('utf-8', 'replace')}"
        return f"{self._files[shard]}: image {index}"

    def _bytes(self, shard: int, offset: int, length: int) -> bytes:
        data = os.pread(self._file(shard), length, offset)
        if len(data) != length:
            raise self._shorter(shard)
        return data

    def _shorter(self, shard: int) -> OSError:
        return OSError(f"{self._files[shard]} has become shorter")

    def _file(self, shard: int) -> int:
        """A shard's file descriptor: a mapping's reader would be killed where the file has become shorter."""
        if shard not in self._opened:
            self._opened[shard] = io.FileIO(self._files[shard])
        return self._opened[shard].fileno()


def open_shards(data: ShardsData) -> tuple[Shards, Shards]:
    """Training images, and the validation images beside them or of the folder `val`."""
    folder = existing(data.train, "data.train")
    index = read_index(folder, "data.train")
    train = Shards(folder, "train", index)
    if data.val is not None:
        folder = existing(data.val, "data.val", "null takes those that lie with data.train")
        index = read_index(folder, "data.val")
        if index.classes != train.classes:
            raise ValueError(f"data.val: {folder} has other classes than {data.train}")
    return train, Shards(folder, "validation", index)


def holds_shards(folder: Path) -> bool:
    """Whether a folder is one that `resnet prepare` wrote."""
    return (folder / records_name("train")).is_file()


def read_index(folder: Path, what: str) -> Index:
    """The index of prepared data. what: how the user called the folder. Raises ValueError where there is none."""
    file = folder / INDEX
    if not file.is_file():
        unfinished = f"{folder} is not finished: repeat the `resnet prepare` that began it"
        none = f"{folder} holds no {INDEX}: give a folder that `resnet prepare` has written"
        raise ValueError(f"{what}: {unfinished if (folder / UNFINISHED).is_file() else none}")
    try:
        index = Index.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        told = f"{where}: {first['msg']}" if where else first["msg"]
        raise ValueError(f"{what}: {file} is damaged ({told}): copy it again, or prepare the data anew") from None
    if index.format != FORMAT:
        raise ValueError(f"{what}: {file} has format {index.format}, and this version reads {FORMAT}")
    return index


def check_size(folder: Path, file: File) -> None:
    """Raise ValueError where a file is not there, or is longer or shorter than its index says."""
    path = folder / file.name
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): copy it again, or prepare the data anew") from None
    if size != file.bytes:
        raise ValueError(f"{path} has {size:,} bytes, not {file.bytes:,}: copy it again, or prepare the data anew")


def shard_name(split: str, number: int, count: int) -> str:
    return f"data/{split}-{number:05d}-of-{count:05d}.parquet"


def records_name(split: str) -> str:
    return f"index-{split}.npy"
