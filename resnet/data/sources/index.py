"""An index of listed files: once a folder is listed, later starts and other ranks map the list instead of looking.

In RUN_ROOT/.index lie, for each place, NAME-KEY.json (what was looked at, and which list it is), and lists as
DIGEST.files, which never change: a line that says which format it is, a line of JSON (classes and sizes), then int64
ends of the names (n + 1), int64 labels (n), and the names' bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from recipes.text import listed, plural
from resnet.data.sources.files import Files, Names, Place, Seen, Stamp, hold
from resnet.rundir.files import open_atomic, read_json, write_atomic

FOLDER = ".index"
"""In the root of the runs."""
_FORMAT = b"resnet-launch files 1\n"
_RACY_NS = 2_000_000_000
"""What changed so shortly before it was listed may have changed again within a tick of the file system's clock."""
_KEPT_SECONDS = 30 * 86400.0
"""In which a list that no place has any more may still be mapped by a run."""
_COMPARED = 8
"""Folders by which ranks of two nodes tell whether they see one file system."""


def parts_of(files: Files) -> Iterator[bytes]:
    """What a list's file holds, piece by piece."""
    header = {"classes": files.classes, "images": len(files), "bytes": len(files.names.joined)}
    text = json.dumps(header).encode()
    yield _FORMAT
    # So that numbers begin at a multiple of their size.
    yield text + b" " * (-(len(_FORMAT) + len(text) + 1) % 8) + b"\n"
    for array, kind in ((files.names.ends, "<i8"), (files.labels, "<i8"), (files.names.joined, "u1")):
        yield np.ascontiguousarray(array, dtype=kind).tobytes()


def digest_of(files: Files) -> str:
    """Of the names, labels and classes, not of where they are."""
    digest = hashlib.sha256()
    for part in parts_of(files):
        digest.update(part)
    return digest.hexdigest()


def read_files(path: Path, digest: str, place: Place) -> Files:
    """A list, mapped. Raises OSError, and ValueError where the file is not that list, or is not of such a place."""
    with _opened(path) as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hashlib.sha256(mapped).hexdigest() != digest:
        raise ValueError(f"{path} is damaged")
    end = mapped.find(b"\n", len(_FORMAT)) + 1
    if mapped[: len(_FORMAT)] != _FORMAT or not end:
        raise ValueError(f"{path} is no list of files")
    classes, images, length = _header(mapped[len(_FORMAT) : end])
    if end % 8 or len(mapped) != end + 8 * (2 * images + 1) + length:
        raise ValueError(f"{path} is not as long as it says")
    numbers = np.frombuffer(mapped, dtype="<i8", count=2 * images + 1, offset=end)
    ends, labels = numbers[: images + 1], numbers[images + 1 :]
    joined = np.frombuffer(mapped, dtype=np.uint8, offset=len(mapped) - length) if length else np.empty(0, np.uint8)
    # Compared, as differences could be beyond what 64 bits hold.
    if ends[0] != 0 or ends[-1] != length or (ends[1:] <= ends[:-1]).any():
        raise ValueError(f"{path} has names that are not where it says")
    if images and not 0 <= labels.min() <= labels.max() < len(classes):
        raise ValueError(f"{path} has labels of no class")
    if mapped.find(b"\0", len(mapped) - length) >= 0 or (place.inside and _leads_out(joined, ends)):
        raise ValueError(f"{path} has names of no files in {place.root}")
    return Files(place.root, Names.of(joined, ends), labels, classes)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """To be read. Raises OSError, and ValueError for what is no plain file, of which a pipe would be waited for."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path} is not a plain file")
        yield file


def _mapped(path: Path, digest: str, place: Place) -> Files:
    """A list that is in use from now on, see `_KEPT_SECONDS`. Raises as `read_files`."""
    files = read_files(path, digest, place)
    # Another user's, or on a file system that is only read.
    with contextlib.suppress(OSError):
        os.utime(path)
    return files


def _entry_in(path: Path) -> dict[str, Any]:
    """Empty where there is none. Raises OSError and ValueError."""
    with contextlib.suppress(FileNotFoundError), _opened(path):
        return read_json(path)
    return {}


def _header(line: bytes) -> tuple[list[str], int, int]:
    """Classes, number of images, and bytes of their names. Raises ValueError."""
    try:
        header = json.loads(line)
        classes, images, length = header["classes"], header["images"], header["bytes"]
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"no header of a list of files ({error})") from None
    texts = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not texts or type(images) is not int or type(length) is not int or min(images, length) < 0:
        raise ValueError("no header of a list of files")
    return classes, images, length


def _leads_out(joined: np.ndarray, ends: np.ndarray) -> bool:
    """Whether one of the names is a whole path, or goes up."""
    slash, dot, last = ord("/"), ord("."), len(joined) - 1
    dots = np.flatnonzero((joined[:-1] == dot) & (joined[1:] == dot))
    begin = (ends[np.searchsorted(ends, dots)] == dots) | (joined[dots - 1] == slash)
    end = (ends[np.searchsorted(ends, dots + 2)] == dots + 2) | (joined[np.minimum(dots + 2, last)] == slash)
    return bool((begin & end).any() or (joined[ends[:-1]] == slash).any())


class Listed(NamedTuple):
    """What the rank that looks tells the others of the files of a key."""

    path: str | None
    """Of the list; None: it could not be written."""
    digest: str
    root: str
    seen: dict[str, Stamp]
    """Of a few folders."""
    host: str


class Index:
    """A `Lister` that lists what has changed, or was never listed, and finds the rest in a folder of indexes.

    keeps: False: what is listed is a copy that will not be there again. rebuild: do not take what was listed earlier.
    tells: whether other ranks will map the lists.
    """

    def __init__(self, folder: Path, keeps: bool = True, rebuild: bool = False, tells: bool = False) -> None:
        self._folder, self._keeps, self._rebuild, self._tells = folder, keeps, rebuild, tells
        self._found: dict[str, Files] = {}
        self.told: dict[str, Listed] = {}

    def __call__(self, key: str, place: Place, listing: Callable[[], Files]) -> Files:
        """The files of a key, listed once however often they are asked for."""
        if key not in self._found:
            files, digest, path = (self._known(place) if not self._rebuild else None) or self._listed(place, listing)
            self._found[key] = files
            self.told[key] = Listed(path and str(path), digest, str(place.root), _few(files.seen), socket.gethostname())
        return self._found[key]

    def _known(self, place: Place) -> tuple[Files, str, Path] | None:
        """What an earlier listing found, where nothing that it looked at has changed."""
        if not self._keeps:
            return None
        try:
            entry = _entry_in(self._entry(place))
            if not entry or entry["terms"] != place.terms:
                return None
            stamps = {str(path): tuple(map(int, numbers)) for path, *numbers in entry["seen"]}
            if not stamps or not hold(str(place.root), stamps):
                return None
            path = self._list(entry["list"])
            files = _mapped(path, entry["list"], place)
        except (OSError, ValueError, TypeError, KeyError, OverflowError):
            # Damaged, a stranger's, or of a folder that may not be read.
            return None
        files.seen = Seen(place.root)
        files.seen.stamps = stamps
        return files, entry["list"], path

    def _listed(self, place: Place, listing: Callable[[], Files]) -> tuple[Files, str, Path | None]:
        files = listing()
        reusable = self._keeps and _is_settled(files.seen)
        if not (reusable or self._tells):
            return files, "", None
        digest = digest_of(files)
        path = self._list(digest)
        with contextlib.suppress(OSError, ValueError):
            # Mapped, as it is on the other ranks: one copy in the memory of a machine.
            mapped = self._written(files, path, digest, place)
            mapped.seen = files.seen
            if reusable:
                # The list is there also where the entry is another user's.
                with contextlib.suppress(OSError):
                    self._write_entry(place, files, digest)
            return mapped, digest, path
        return files, digest, None

    def _written(self, files: Files, path: Path, digest: str, place: Place) -> Files:
        # Not the root of the runs, which a first run makes when nothing can be wrong any more.
        self._folder.mkdir(exist_ok=True)
        with contextlib.suppress(OSError, ValueError):
            return _mapped(path, digest, place)
        with open_atomic(path) as file:
            for part in parts_of(files):
                file.write(part)
        with contextlib.suppress(OSError):
            self._clean()
        return read_files(path, digest, place)

    def _write_entry(self, place: Place, files: Files, digest: str) -> None:
        assert files.seen is not None
        rows = [[path, *stamp] for path, stamp in sorted(files.seen.stamps.items())]
        content = {"terms": dict(place.terms), "list": digest, "seen": rows}
        write_atomic(self._entry(place), json.dumps(content))

    def _clean(self) -> None:
        """Remove lists of what has changed since, and what a killed process left, a month after their last use."""
        lists = {_list_of(entry) for entry in self._folder.glob("*.json")}
        for path in self._folder.iterdir():
            is_old = time.time() - path.stat().st_mtime > _KEPT_SECONDS
            if is_old and path.suffix in (".files", ".tmp") and path.stem not in lists:
                path.unlink(missing_ok=True)

    def _entry(self, place: Place) -> Path:
        key = hashlib.sha256(json.dumps(place.terms, sort_keys=True).encode()).hexdigest()[:16]
        name = re.sub(r"[^\w.-]", "_", place.root.name, flags=re.ASCII)
        return self._folder / f"{name[:60]}-{key}.json"

    def _list(self, digest: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError(f"{digest!r} is no digest")
        return self._folder / f"{digest}.files"


def _list_of(entry: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return str(_entry_in(entry).get("list"))
    return ""


def _is_settled(seen: Seen | None) -> bool:
    if seen is None:
        return False
    return max((changed for changed, *_ in seen.stamps.values()), default=seen.began) < seen.began - _RACY_NS


def _few(seen: Seen | None) -> dict[str, Stamp]:
    stamps = [] if seen is None else sorted(seen.stamps.items())
    return dict(stamps[:: max(1, len(stamps) // _COMPARED)])


class Told:
    """The `Lister` of ranks that were told: they map the lists, below the same keys' places on their own machine.

    told: by key. compares: whether this rank tells for its machine if it has the same files. rank: of this process.
    """

    def __init__(self, told: Mapping[str, Listed], compares: bool, rank: int) -> None:
        self._told, self._compares, self._rank = told, compares, rank

    def __call__(self, key: str, place: Place, listing: Callable[[], Files]) -> Files:
        """The files of a key. Raises ValueError where this machine has others than the rank that looked."""
        told = self._told[key]
        theirs = None if told.path is None else _awaited(Path(told.path), told.digest, place)
        if theirs is not None and not (self._compares and not _is_one_place(place, told)):
            return theirs
        here = f"rank {self._rank} ({socket.gethostname()})"
        try:
            ours = listing()
        except ValueError as error:
            raise ValueError(f"{error} This is {here}; rank 0 ({told.host}) has read {told.root}") from error
        if digest_of(ours) != told.digest:
            where = f"{here} sees other files in {place.root} than rank 0 ({told.host}) in {told.root}"
            what = _difference(ours, theirs, f"on rank {self._rank}", "on rank 0")
            raise ValueError(f"{key}: {where}: {what}. All ranks need the same files")
        return theirs or ours


def _is_one_place(place: Place, told: Listed) -> bool:
    return bool(told.seen) and hold(str(place.root), told.seen)


def _awaited(path: Path, digest: str, place: Place, seconds: float = 60) -> Files:
    """A list that rank 0 wrote: a network file system may show it late."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return read_files(path, digest, place)
        except OSError as error:
            problem = f"{path} cannot be read here ({error.strerror})"
        except ValueError as error:
            problem = str(error)
        if time.monotonic() > deadline:
            raise ValueError(f"{problem}: all ranks need the same run.root on a shared file system")
        time.sleep(0.5)


def _difference(ours: Files, theirs: Files | None, here: str, there: str) -> str:
    """What two lists differ in, in words. here, there: where they are, as "on rank 0"."""
    if theirs is None:
        return f"{here} there are {plural(len(ours), 'image')} of {plural(len(ours.classes), 'class')}"
    if ours.classes != theirs.classes:
        only = ((here, {*ours.classes} - {*theirs.classes}), (there, {*theirs.classes} - {*ours.classes}))
        told = " and ".join(f"{listed(sorted(names))} only {where}" for where, names in only if names)
        return f"{plural(len(ours.classes), 'class')} and {len(theirs.classes):,}, {told or 'in another order'}"
    counts = f"{plural(len(ours), 'image')} and {len(theirs):,}"
    mine, others = ({files.names[at]: files.labels[at] for at in range(len(files))} for files in (ours, theirs))
    for where, names, without in ((here, mine, others), (there, others, mine)):
        if name := next((name for name in names if name not in without), None):
            return f"{counts}; {name} (class {ours.classes[names[name]]}) is only {where}"
    for name, label in mine.items():
        if label != others[name]:
            return f"{name} is of class {ours.classes[label]} {here}, and of {ours.classes[others[name]]} {there}"
    return f"{counts}, in another order"
