"""Tensors from a file of torch.save that may hold more than tensors: nothing in it is run, and a file takes no more
memory than its size and some hundred megabytes."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from resnet.inert_pickle import SavedTensor, Steps, Storage

MOST_PICKLED = 1 << 24
"""Bytes of what a checkpoint holds beside its tensors' elements: some 100 for a tensor, of the optimizer's too.

That is 0.3 MB for a ResNet-152 with an average and AdamW's state.
"""
_MOST_DIMENSIONS = 16


class _Elements:
    """Storages by their keys, read when they are first asked for, and the tensors that lie in them."""

    def __init__(self, read: Callable[[Storage], bytes]) -> None:
        self._read = read
        self._read_yet: dict[str, Tensor] = {}
        self._tensors: dict[int, tuple[SavedTensor, Tensor]] = {}
        """By the record's id, with the record, which keeps the id its own."""

    def tensor(self, record: SavedTensor) -> Tensor:
        """The same for the same record."""
        if id(record) not in self._tensors:
            storage, offset, size, stride = record
            elements = self._of(storage)
            if len(elements) < storage.length:
                raise pickle.UnpicklingError("the elements of a tensor are not all there")
            if len(size) > _MOST_DIMENSIONS:
                raise pickle.UnpicklingError(f"a tensor of {len(size):,} dimensions")
            # torch checks that it lies within the elements.
            found = torch.as_strided(elements, size, stride, offset)
            if found.numel() > len(elements):
                raise pickle.UnpicklingError(f"a tensor {list(size)} of {len(elements):,} elements, which it repeats")
            self._tensors[id(record)] = record, found
        return self._tensors[id(record)][1]

    def _of(self, storage: Storage) -> Tensor:
        """1-D, as they lie in the file."""
        if storage.key not in self._read_yet:
            content = bytearray(self._read(storage))
            found = torch.frombuffer(content, dtype=storage.dtype) if content else torch.empty(0, dtype=storage.dtype)
            self._read_yet[storage.key] = found
        return self._read_yet[storage.key]


def _with_tensors(value: Any, elements: _Elements) -> Any:
    """The value with the tensors themselves in its mappings, and in those within these."""
    if isinstance(value, SavedTensor):
        return elements.tensor(value)
    waiting, seen = [value] if isinstance(value, dict) else [], {id(value)}
    while waiting:
        mapping = waiting.pop()
        for key, item in mapping.items():
            if isinstance(item, SavedTensor):
                mapping[key] = elements.tensor(item)
            elif isinstance(item, dict) and id(item) not in seen:
                seen.add(id(item))
                waiting.append(item)
    return value


def read_inertly(path: Path) -> Any:
    """The content of a file of torch.save: tensors, plain values, and `Inert` objects.

    Tensors are found in mappings within mappings, not in lists. Of a mapping only what has a name is there.

    Raises pickle.UnpicklingError where it cannot be read so, OSError where there is no file.
    """
    with path.open("rb") as file:
        try:
            if file.read(4) == b"PK\x03\x04":
                return _read_archive(file)
            file.seek(0)
            return _read_stream(file)
        except (pickle.UnpicklingError, OSError):
            raise
        except Exception as error:
            # What a stranger wrote can fail in any way.
            reason = str(error).partition("\n")[0][:200]
            raise pickle.UnpicklingError(f"{type(error).__name__}: {reason}") from error


def _read_archive(file: BinaryIO) -> Any:
    """A zip archive, which torch.save writes since version 1.6."""
    # Checked first, since zipfile makes an object for each of its entries.
    end = zipfile._EndRecData(file)  # pyright: ignore[reportAttributeAccessIssue]
    if end is not None and end[zipfile._ECD_SIZE] > MOST_PICKLED:  # pyright: ignore[reportAttributeAccessIssue]
        raise pickle.UnpicklingError("it holds too many files")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        stored = all(not info.compress_type and info.compress_size == info.file_size for info in members)
        if not stored or sum(info.file_size for info in members) > file.seek(0, io.SEEK_END):
            raise pickle.UnpicklingError("it is compressed, which torch.save never does")
        files = {info.filename.partition("/")[2]: info for info in members}
        if "data.pkl" not in files:
            raise pickle.UnpicklingError("it is no file of torch.save")
        if files["data.pkl"].file_size > MOST_PICKLED:
            raise pickle.UnpicklingError("it holds too much beside its tensors")
        if "byteorder" in files and archive.read(files["byteorder"]) != b"little":
            raise pickle.UnpicklingError("its numbers are big-endian")
        content = Steps().follow(io.BytesIO(archive.read(files["data.pkl"])))
        return _with_tensors(content, _Elements(lambda storage: archive.read(files[f"data/{storage.key}"])))


_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""What the older format begins with."""


def _read_stream(file: BinaryIO) -> Any:
    """Pickles one behind another, and the storages behind them, as torch.save wrote before version 1.6."""
    pickled, steps = io.BytesIO(file.read(MOST_PICKLED)), Steps()
    if steps.follow(pickled) != _MAGIC or steps.follow(pickled) != _PROTOCOL:
        raise pickle.UnpicklingError("it is no file of torch.save")
    system, content, keys = (steps.follow(pickled) for _ in range(3))
    if not system["little_endian"]:
        raise pickle.UnpicklingError("its numbers are big-endian")
    size, begin, places = file.seek(0, io.SEEK_END), pickled.tell(), {}
    for key in keys:
        if not isinstance(key, str) or key not in steps.dtypes:
            raise pickle.UnpicklingError("tensors of an unknown type")
        file.seek(begin)
        length = int.from_bytes(file.read(8), "little") * steps.dtypes[key].itemsize
        places[key] = begin + 8, length
        begin += 8 + length
        if begin > size:
            raise pickle.UnpicklingError("it ends early")

    def read(storage: Storage) -> bytes:
        start, length = places[storage.key]
        file.seek(start)
        return file.read(length)

    return _with_tensors(content, _Elements(read))
