"""Tensors from a file of torch.save that holds more than tensors, without running anything that is in it.

A checkpoint of another trainer often keeps its options beside the weights (an argparse.Namespace, paths, numpy's
numbers, its own classes), and unpickling these would import and call what the file names. Here nothing is imported:
tensors are put together by this module, and everything else becomes an `Inert` object that does nothing.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

MOST_PICKLED = 1 << 28
"""Bytes of what a checkpoint holds beside its tensors' elements; one of a ResNet has some hundred thousand."""


class Inert:
    """Stands for an object of a class that is not looked up; `kind` is that class's name."""

    __slots__ = ()
    kind = "object"

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...

    def add(self, value: Any) -> None: ...


class _Dict(dict):
    """An OrderedDict or a defaultdict of the file; what else it carries is left out."""

    def __init__(self, content: Any = (), *_: Any) -> None:
        super().__init__(content if isinstance(content, (dict, list)) else ())

    def __setstate__(self, state: Any) -> None: ...


class _Storage(NamedTuple):
    elements: Tensor
    """1-D, as they lie in the file."""


class _Held:
    """A tensor that the file cannot reach: torch's own lets a pickle set its memory and its hooks."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __setstate__(self, state: Any) -> None: ...


class _Reader(pickle.Unpickler):
    """Looks nothing up, and calls nothing but what is given to it here."""

    def __init__(self, stream: io.BytesIO, read: Callable[[str], bytearray]) -> None:
        super().__init__(stream)
        self._read, self._storages = read, {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("collections", "OrderedDict"), ("collections", "defaultdict")):
            return type("_Dict", (_Dict,), {})
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return _Function(_tensor)
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return _Function(_parameter)
        # One of its own for each, since a file can write on a class as well.
        return type("Inert", (Inert,), {"__slots__": (), "kind": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _, count = pid
        if kind != "storage" or not isinstance(key, str):
            raise pickle.UnpicklingError("an unknown kind of reference")
        if key not in self._storages:
            dtype = _DTYPES.get(str(getattr(storage_type, "kind", "")))
            if dtype is None:
                raise pickle.UnpicklingError("tensors of an unknown type")
            content = self._read(key)
            found = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            self._storages[key] = _Storage(found)
        if len(self._storages[key].elements) < int(count):
            raise pickle.UnpicklingError(f"the elements of tensor {key} are not all there")
        return self._storages[key]


class _Function:
    """A function that a file can call but not write on."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None: ...


_DTYPES = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Double": torch.float64,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Held:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor of something else than numbers")
    # torch checks that it lies within the elements.
    return _Held(torch.as_strided(storage.elements, size, stride, offset))


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _opened(value: Any, depth: int = 0) -> Any:
    """The value with its tensors in place of what held them, as deep as mappings are nested in checkpoints."""
    if isinstance(value, _Held):
        return value.tensor
    if isinstance(value, dict) and depth < 8:
        return {key: _opened(item, depth + 1) for key, item in value.items()}
    return value


def read_inertly(path: Path) -> Any:
    """The content of a file of torch.save, of version 1.6 or later: tensors, plain values, and `Inert` objects.

    Tensors are found in mappings within mappings, not in lists.

    Raises pickle.UnpicklingError where it cannot be read so.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _opened(_load(archive))
    except pickle.UnpicklingError:
        raise
    except Exception as error:
        # What a stranger wrote can make the unpickler fail in any way.
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error


def _load(archive: zipfile.ZipFile) -> Any:
    files = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    total = sum(info.file_size for info in files.values())
    if any(info.compress_type != zipfile.ZIP_STORED for info in files.values()) or total > _size(archive):
        raise pickle.UnpicklingError("it is compressed, which torch.save never does")
    if "data.pkl" not in files:
        raise pickle.UnpicklingError("it is no file of torch.save")
    if "byteorder" in files and archive.read(files["byteorder"]) != b"little":
        raise pickle.UnpicklingError("its numbers are big-endian")
    if files["data.pkl"].file_size > MOST_PICKLED:
        raise pickle.UnpicklingError("it holds too much beside its tensors")
    stream = io.BytesIO(archive.read(files["data.pkl"]))
    return _Reader(stream, lambda key: bytearray(archive.read(files[f"data/{key}"]))).load()


def _size(archive: zipfile.ZipFile) -> int:
    assert archive.fp is not None
    return archive.fp.seek(0, io.SEEK_END)
