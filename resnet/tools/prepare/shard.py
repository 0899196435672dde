"""One shard: a parquet file as Hugging Face's datasets know them, and where in it each image lies."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from resnet.checkpoint.commit import sha256_of
from resnet.data.arrays import BrokenImage
from resnet.data.sources.banded import read_both
from resnet.data.sources.shards import RECORD, Broken, File, shard_name
from resnet.data.sources.source import Source
from resnet.rundir.files import open_atomic, write_atomic
from resnet.tools.prepare.forms import Form, Stored, store

ROW_GROUP = 16 << 20
"""Bytes of images after which a row group ends: what a worker holds in memory."""
_HEAD = 64
"""Bytes of an image that are looked for before all are compared."""


class Task(NamedTuple):
    """Images [start, stop) of a split, which become one shard."""

    split: str
    number: int
    shards: int
    """Of the split, in all."""
    start: int
    stop: int

    @property
    def images(self) -> int:
        return self.stop - self.start

    @property
    def name(self) -> str:
        return shard_name(self.split, self.number, self.shards)


class Part(BaseModel):
    """What is known of a finished shard, beside its records."""

    file: File
    broken: list[Broken]


class _Row(NamedTuple):
    stored: Stored
    name: str
    label: int


def write_shard(source: Source, form: Form, task: Task, roots: Sequence[str], out: Path) -> None:
    """Write a shard and its part of the index. roots: folders that the names of images are told from."""
    broken: list[Broken] = []
    records: list[np.ndarray] = [np.empty(0, dtype=RECORD)]
    path = out / task.name
    rows = _rows(source, form, task, roots, broken)
    with open_atomic(path) as file, _writer(file, form, source.classes) as writer:
        for group in _groups(rows):
            start = file.tell()
            writer.write_table(_table(group, writer.schema))
            file.flush()
            with open(file.name, "rb") as back:
                back.seek(start)
                records.append(_records(back.read(), start, group, task.number))
    with open_atomic(_beside(out, task, "npy")) as file:
        np.save(file, np.concatenate(records), allow_pickle=False)
    with path.open("rb") as file:
        digest = sha256_of(file)
    part = Part(file=File(name=task.name, bytes=path.stat().st_size, sha256=digest), broken=broken)
    write_atomic(_beside(out, task, "json"), part.model_dump_json())


def read_part(out: Path, task: Task) -> tuple[Part, np.ndarray]:
    """A finished shard's part of the index, with its records. Raises OSError or ValueError where it has none."""
    part = Part.model_validate_json(_beside(out, task, "json").read_bytes())
    return part, np.load(_beside(out, task, "npy"), allow_pickle=False)


def is_finished(out: Path, task: Task) -> bool:
    """Whether a shard is there, just as it was written, with all images: those it lacks may be readable by now."""
    try:
        part, _ = read_part(out, task)
        with (out / task.name).open("rb") as file:
            return not part.broken and sha256_of(file) == part.file.sha256
    except Exception:  # numpy parses the header of records as Python, whose errors are many
        return False


def _beside(out: Path, task: Task, ending: str) -> Path:
    return out / "parts" / f"{Path(task.name).stem}.{ending}"


def told_from(roots: Sequence[str], name: str) -> str:
    """A name without the first of the folders that it lies in, as text that can be written."""
    root = next((root for root in roots if name.startswith(root)), "")
    return as_text(name.removeprefix(root))


def as_text(name: str) -> str:
    """A name as text that can be written, whatever bytes it has on the disk."""
    return name.encode("utf-8", "backslashreplace").decode()


def _rows(source: Source, form: Form, task: Task, roots: Sequence[str], broken: list[Broken]) -> Iterator[_Row]:
    for index in range(task.start, task.stop):
        name = told_from(roots, source.describe(index))
        try:
            yield _Row(store(form, *read_both(source, index)), name, int(source.labels[index]))
        except (BrokenImage, OSError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or str(error)  # with no path in it
            broken.append(Broken(image=name, reason=as_text(reason)))


def _groups(rows: Iterator[_Row]) -> Iterator[list[_Row]]:
    group, size = [], 0
    for row in rows:
        group.append(row)
        size += len(row.stored.data)
        if size >= ROW_GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _writer(file, form: Form, classes: list[str]) -> pq.ParquetWriter:
    label = {"names": classes, "_type": "ClassLabel"}
    if form.kind == "raw":
        columns = {"pixels": pa.binary(), "path": pa.string(), "height": pa.int32(), "width": pa.int32()}
        features = {name: {"dtype": str(kind), "_type": "Value"} for name, kind in columns.items()}
    else:
        columns = {"image": pa.struct([("bytes", pa.binary()), ("path", pa.string())])}
        features = {"image": {"_type": "Image"}}
    described = json.dumps({"info": {"features": {**features, "label": label}}})
    schema = pa.schema([*columns.items(), ("label", pa.int64())], metadata={"huggingface": described})
    # Statistics would hold whole images.
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False, "write_batch_size": 16}
    return pq.ParquetWriter(file, schema, **plain)  # pyright: ignore[reportArgumentType]


def _table(group: list[_Row], schema: pa.Schema) -> pa.Table:
    data = pa.array([row.stored.data for row in group], pa.binary())
    names = pa.array([row.name for row in group], pa.string())
    columns = {"label": pa.array([row.label for row in group], pa.int64())}
    if "pixels" in schema.names:
        columns |= {"pixels": data, "path": names}
        columns |= {side: pa.array([getattr(row.stored, side) for row in group]) for side in ("height", "width")}
    else:
        columns["image"] = pa.StructArray.from_arrays([data, names], fields=list(schema.field("image").type))
    return pa.table(columns).select(schema.names).cast(schema)


def _records(written: bytes, start: int, group: list[_Row], shard: int) -> np.ndarray:
    """Records of the images of a row group. written: its bytes; start: where they begin in the file."""
    images = _found(written, 0, [row.stored.data for row in group])
    names = [row.name.encode() for row in group]
    places = _found(written, images[-1] + len(group[-1].stored.data), names)
    return np.array(
        [
            (shard, start + at, len(data), height, width, row.label, start + place, len(name))
            for (row, at, place, name) in zip(group, images, places, names, strict=True)
            for data, height, width in [row.stored]
        ],
        dtype=RECORD,
    )


def _found(written: bytes, position: int, values: Sequence[bytes]) -> list[int]:
    """Where values lie that were written one after another in plain encoding: each behind its length in 4 bytes."""
    places = []
    for value in values:
        head = len(value).to_bytes(4, "little") + value[:_HEAD]
        while True:
            position = written.find(head, position)
            if position < 0:
                raise RuntimeError(f"pyarrow {pa.__version__} did not write the bytes of an image in one piece")
            if written[position + 4 : position + 4 + len(value)] == value:
                break
            position += 1
        places.append(position + 4)
        position += 4 + len(value)
    return places
