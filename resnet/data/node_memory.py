"""Memory that the ranks of a machine and their workers share, and that is gone with the last of them."""

from __future__ import annotations

import contextlib
import fcntl
import math
import mmap
import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import DTypeLike

Address = tuple[int, int]
"""A process, and the number of one of its open files: the memory has no name, so that a killed run leaves none."""


_NAME = "resnet-data-cache"


class NodeMemory:
    """So many bytes, at first 0, of which pages that nobody has written to take no room (Linux only).

    address: of memory that another process made. Raises OSError where it is gone.
    """

    def __init__(self, size: int, address: Address | None = None) -> None:
        self.size = size
        if address is None:
            descriptor = os.memfd_create(_NAME)
            os.truncate(descriptor, size)
            address = os.getpid(), descriptor
        else:
            descriptor = _opened(address, size)
        self.address = address
        self._file = open(descriptor, "r+b", buffering=0)  # noqa: SIM115  open for others as long as this lives
        self._map = mmap.mmap(descriptor, size)

    def __reduce__(self) -> tuple[type, tuple[int, Address]]:
        return NodeMemory, (self.size, self.address)

    def array(self, start: int, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """A part of it, from a byte on that is a multiple of 64."""
        return np.frombuffer(self._map, dtype, math.prod(shape), start).reshape(shape)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out; the kernel lets them in when this one dies."""
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


def _opened(address: Address, size: int) -> int:
    """Another process may since have got the number, or its file: nothing but such memory is to be written to."""
    descriptor = os.open(f"/proc/{address[0]}/fd/{address[1]}", os.O_RDWR)
    name = os.readlink(f"/proc/self/fd/{descriptor}")
    if not name.startswith(f"/memfd:{_NAME}") or os.fstat(descriptor).st_size != size:
        os.close(descriptor)
        raise OSError(f"file {address[1]} of process {address[0]} is {name}, not the memory that was made")
    return descriptor


def room_of(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    """Bytes from the start of an array in such memory to that of the next."""
    return -(-math.prod(shape) * np.dtype(dtype).itemsize // 64) * 64


def is_possible() -> bool:
    """Python has it on Linux only, and not where it was built for old ones."""
    return hasattr(os, "memfd_create")
