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
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

MOST_PICKLED = 1 << 24
"""Bytes of what a checkpoint holds beside its tensors' elements: some 100 for a tensor, of the optimizer's too.

That is 0.3 MB for a ResNet-152 with an average and AdamW's state.
"""
MOST_CLASSES = 1 << 12
"""Names of classes and functions in a checkpoint; some dozens are usual, and each takes a kilobyte here."""


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


def _load_bytearray(reader: Any) -> None:
    """BYTEARRAY8, of what is there; the original allocates the length that the file states."""
    reader.load_binbytes8()
    reader.append(bytearray(reader.stack.pop()))


class _Reader(pickle._Unpickler):
    """Looks nothing up, and calls nothing but what is given to it here.

    Derived from Python's own unpickler, as what it allocates is bounded by what it has read: the one in C makes room
    for as many references as a file says that it has.
    """

    def __init__(self, stream: io.BytesIO, read: Callable[[str], bytearray]) -> None:
        super().__init__(stream)
        self._read, self._storages, self._classes = read, {}, {}

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: _load_bytearray}

    def find_class(self, module: str, name: str) -> Any:
        """The same for the same name; another file has its own, since a file can write on a class as well."""
        if (module, name) not in self._classes:
            if len(self._classes) == MOST_CLASSES:
                raise pickle.UnpicklingError("it names too many classes")
            self._classes[module, name] = self._stand_in(module, name)
        return self._classes[module, name]

    def _stand_in(self, module: str, name: str) -> Any:
        if (module, name) in (("collections", "OrderedDict"), ("collections", "defaultdict")):
            return type("_Dict", (_Dict,), {})
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return _Function(_tensor)
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return _Function(_parameter)
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


def _opened(value: Any) -> Any:
    """The value with its tensors in place of what held them, in mappings within mappings; each is copied once."""
    copies: dict[int, dict] = {}
    waiting: list[dict] = []

    def opened(item: Any) -> Any:
        if isinstance(item, _Held):
            return item.tensor
        if not isinstance(item, dict):
            return item
        if id(item) not in copies:
            copies[id(item)] = {}
            waiting.append(item)
        return copies[id(item)]

    content = opened(value)
    while waiting:
        mapping = waiting.pop()
        copies[id(mapping)].update({key: opened(item) for key, item in mapping.items()})
    return content


def check_archive(path: Path) -> None:
    """Raise pickle.UnpicklingError where a zip archive would take more memory than its own size, or much to unpickle.

    It is to be called before torch.load, which unpacks what is compressed. Nothing is said of files of other kinds.
    Raises OSError where there is no file.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    try:
        with zipfile.ZipFile(path) as archive:
            _members(archive)
    except (pickle.UnpicklingError, OSError):
        raise
    except Exception as error:
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error


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


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members of a file of torch.save by their names within its one folder, checked to be no larger than it is."""
    members = archive.infolist()
    total = sum(info.file_size for info in members)
    if any(info.compress_type != zipfile.ZIP_STORED for info in members) or total > _size(archive):
        raise pickle.UnpicklingError("it is compressed, which torch.save never does")
    files = {info.filename.partition("/")[2]: info for info in members}
    if "data.pkl" not in files or not _has_one_directory(archive):
        raise pickle.UnpicklingError("it is no file of torch.save")
    # torch finds its members in whatever case.
    if any(info.file_size > MOST_PICKLED for info in members if info.filename.lower().endswith("data.pkl")):
        raise pickle.UnpicklingError("it holds too much beside its tensors")
    return files


def _load(archive: zipfile.ZipFile) -> Any:
    files = _members(archive)
    if "byteorder" in files and archive.read(files["byteorder"]) != b"little":
        raise pickle.UnpicklingError("its numbers are big-endian")
    stream = io.BytesIO(archive.read(files["data.pkl"]))
    return _Reader(stream, lambda key: bytearray(archive.read(files[f"data/{key}"]))).load()


def _has_one_directory(archive: zipfile.ZipFile) -> bool:
    """Whether all that the archive's end says of where its directory begins is where zipfile has read it.

    zipfile takes what lies before the end, torch's reader what the end says: of a file where these differ, torch would
    read other members than were checked. The layout is PKWARE's APPNOTE.TXT 6.3.10, 4.3.14 to 4.3.16.
    """
    assert archive.fp is not None
    size = _size(archive)
    archive.fp.seek(max(0, size - 98))
    tail = archive.fp.read().rjust(98, b"\0")
    larger, locator, end = tail[:56], tail[56:76], tail[76:]
    begins = archive.start_dir
    if end[:4] != b"PK\x05\x06" or int.from_bytes(end[16:20], "little") != min(begins, 0xFFFFFFFF):
        return False
    if locator[:4] != b"PK\x06\x07":
        return True
    placed = int.from_bytes(locator[8:16], "little") == size - 98
    return placed and larger[:4] == b"PK\x06\x06" and int.from_bytes(larger[48:56], "little") == begins


def _size(archive: zipfile.ZipFile) -> int:
    assert archive.fp is not None
    return archive.fp.seek(0, io.SEEK_END)
