"""`resnet features`: what a layer of a trained network makes of images, as a table."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from recipes.schema.model import net_of
from resnet.checkpoint.commit import sha256_of
from resnet.data.sources.given import as_paths, open_given
from resnet.data.sources.registry import open_sources
from resnet.data.sources.source import Source
from resnet.inference import network_input
from resnet.process.version import VERSION
from resnet.rundir.files import open_atomic, read_json, to_json, write_atomic
from resnet.tools.forward import choose_device, evaluation_precision, forward
from resnet.tools.trained import Trained
from resnet.tools.weights import load_network
from resnet.weights_file import KEY, PREPARED

LAYERS = ("avgpool", *(f"layer{stage}" for stage in range(6, 0, -1)))
"""Of which features can be taken; the mean over height and width of those that have these."""
PART = 1024
"""Images, about, of a row group, and of what a kill loses."""


class Named(Source, Protocol):
    """A source whose images have names, and labels in words; -1 in `labels` where there is none."""

    ids: Any

    def label_name(self, index: int) -> str | None: ...


class OwnImages:
    """The training or validation images of a recipe, called by their files or rows."""

    def __init__(self, source: Source) -> None:
        self._source, self.labels, self.classes = source, source.labels, source.classes
        self.read, self.describe = source.read, source.describe
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self._source)

    @property
    def ids(self) -> OwnImages:
        return self

    def __getitem__(self, index: int) -> str:
        return self.describe(index)

    def label_name(self, index: int) -> str | None:
        return self.classes[self.labels[index]]


class Written(NamedTuple):
    """What a table of features holds."""

    rows: int
    size: int
    """Numbers of a feature."""
    problems: list[tuple[str, str]]
    """Images that could not be read and are left out: file and reason, of the part of the work done now."""
    resumed: int
    """Images that an interrupted command had done before."""


class Features(NamedTuple):
    """Features of images that could be read, in order."""

    features: np.ndarray
    """float32 (n, size)."""
    ids: list[str]
    labels: np.ndarray
    """int64 (n,): indices into the network's classes, -1 for none."""


def features_of(trained: Trained, source: Named, layer: str, batch_size: int, device: str) -> Features:
    """All features at once, in memory. Raises ValueError as `write_features` does."""
    indices: list[int] = []
    found = []
    for some, features, _ in blocks_of_features(trained, source, layer, batch_size, choose_device(device)):
        indices += some
        found += [features] if some else []
    if not found:
        raise ValueError("none of the images could be read")
    return Features(np.concatenate(found), [source.ids[index] for index in indices], source.labels[indices])


def open_images(
    trained: Trained,
    paths: str | Path | Iterable[str | Path],
    columns: tuple[str | None, str | None] | None = None,
    images: Path | None = None,
) -> Any:
    """The images that paths name (see `open_given`); "train" or "val" alone: those of the recipe.

    trained: with its classes `named`.
    """
    paths = as_paths(paths)
    if paths in (["train"], ["val"]):
        return OwnImages(open_sources(trained.recipe.data, channels=trained.recipe.model.in_channels)[paths == ["val"]])
    return open_given(paths, trained.classes, columns, images, trained.recipe.data)


def feature_function(trained: Trained, layer: str, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from images uint8 (N, 3, H, W) to the layer's features float32 (N, size). Raises ValueError."""
    net_of(trained.recipe.model)  # of one that the user wrote nobody knows what its layers are
    network = load_network(trained.recipe, None, trained.weights, device)
    names = [name for name, _ in network.named_children()]
    if layer not in (own := [name for name in LAYERS if name in names]):
        raise ValueError(f"layer {layer} is none of {', '.join(own)}")
    # Its forward takes its children in turn.
    until = nn.Sequential(*(getattr(network, name) for name in names[: names.index(layer) + 1]))

    def compute(images: torch.Tensor) -> torch.Tensor:
        kind = device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        return until(network_input(images, trained.recipe, device, dtype)).float().mean((2, 3))

    return compute


def blocks_of_features(
    trained: Trained, source: Named, layer: str, batch_size: int, device: torch.device, start: int = 0
) -> Generator[tuple[list[int], np.ndarray, dict[int, str]], None, None]:
    """By batch: indices of the images, their features float32 (N, size), and why others could not be read."""
    compute = feature_function(trained, layer, device)
    with contextlib.closing(forward(source, trained.recipe, batch_size, device, compute, start)) as batches:
        for batch in batches:
            found = np.empty((0, 0), dtype=np.float32) if batch.outputs is None else batch.outputs.cpu().numpy()
            yield batch.indices, found, batch.problems


def write_features(
    trained: Trained,
    source: Named,
    out: Path,
    layer: str = "avgpool",
    batch_size: int = 64,
    device: str = "auto",
    told: Callable[[Iterator[Any], int], Iterator[Any]] | None = None,
) -> Written:
    """Write a parquet file with id, label, label_index and feature of each image that can be read, in order.

    The work is kept in parts beside `out`, from which the same command goes on after an interruption, to the same
    bytes. told: wraps the parts as they come, with the index of the first, to show how far it is.
    Raises ValueError where another process is at it, for another layer, and where no image can be read.
    """
    chosen = choose_device(device)
    describe = _description(trained, source, layer, batch_size, chosen)
    folder = out.with_name(f".{out.name}.parts")
    lock = out.with_name(f".{out.name}.lock")
    try:
        with filelock.FileLock(lock, timeout=0):
            folder.mkdir(exist_ok=True)
            try:
                return _write(trained, source, out, folder, describe, chosen, told)
            finally:
                # While it is held: who waits at the file that is gone is told so, and takes a new one.
                lock.unlink(missing_ok=True)
    except filelock.Timeout:
        raise ValueError(f"another command is writing {out}: wait for it, or end it") from None


def _write(
    trained: Trained,
    source: Named,
    out: Path,
    folder: Path,
    description: dict[str, Any],
    device: torch.device,
    told: Callable[[Iterator[Any], int], Iterator[Any]] | None,
) -> Written:
    if read_json(folder / "of.json") != description:
        for file in folder.glob("*.parquet"):
            file.unlink()
        write_atomic(folder / "of.json", to_json(description))
    layer, batch_size = description["layer"], description["batch_size"]
    step = batch_size * -(-PART // batch_size)
    starts = range(0, len(source), step)
    done = next((start for start in starts if not (folder / _name(start)).is_file()), len(source))
    problems: list[tuple[str, str]] = []
    if done < len(source):
        blocks = blocks_of_features(trained, source, layer, batch_size, device, done)
        with contextlib.closing(blocks):
            _write_parts(blocks if told is None else told(blocks, done), source, folder, done, step, problems)
    tables = (pq.read_table(folder / _name(start)) for start in starts)
    rows, size = _join(tables, out, description)
    shutil.rmtree(folder)
    return Written(rows, size, problems, done)


def _name(start: int) -> str:
    return f"{start:012d}.parquet"


def _write_parts(
    blocks: Iterator[Any], source: Named, folder: Path, start: int, step: int, problems: list[tuple[str, str]]
) -> None:
    """A file for each `step` images, the first of which is at `start`."""
    indices: list[int] = []
    found: list[np.ndarray] = []
    seen = start
    for some, features, reasons in blocks:
        indices += some
        found += [features] if len(some) else []
        problems += [(source.describe(at), reason) for at, reason in reasons.items()]
        seen += len(some) + len(reasons)
        if seen - start == step or seen == len(source):
            with open_atomic(folder / _name(start)) as file:
                pq.write_table(_table(indices, found, source), file)
            indices, found, start = [], [], seen


def _table(indices: list[int], found: list[np.ndarray], source: Named) -> pa.Table:
    size = found[0].shape[1] if found else 0
    flat = np.concatenate(found).ravel() if found else np.empty(0, dtype=np.float32)
    numbers = source.labels[indices] if indices else np.empty(0, dtype=np.int64)
    columns = {
        "id": pa.array([_text(source.ids[index]) for index in indices], pa.string()),
        "label": pa.array([_text(source.label_name(index)) for index in indices], pa.string()),
        "label_index": pa.array(numbers, pa.int64(), mask=numbers < 0),
        "feature": pa.FixedSizeListArray.from_arrays(pa.array(flat), size) if size else pa.nulls(0),
    }
    return pa.table(columns)


def _text(name: str | None) -> str | None:
    """A name of a file or folder as UTF-8: bytes that are none are written as \\xe9."""
    return None if name is None else os.fsencode(name).decode("utf-8", "backslashreplace")


def _join(tables: Iterator[pa.Table], out: Path, description: dict[str, Any]) -> tuple[int, int]:
    """One file of all parts, a row group each; its rows and the numbers of a feature."""
    tables = (table for table in tables if len(table))
    first = next(tables, None)
    if first is None:
        raise ValueError("none of the images could be read")
    size = first.schema.field("feature").type.list_size
    schema = first.schema.with_metadata({KEY: to_json(description | {"size": size})})
    rows = 0
    with open_atomic(out) as file, pq.ParquetWriter(file, schema) as writer:
        for table in (first, *tables):
            writer.write_table(table.cast(schema))
            rows += len(table)
    return rows, size


def _description(trained: Trained, source: Named, layer: str, batch_size: int, device: torch.device) -> dict[str, Any]:
    """What a table says of itself; and parts of another description are not gone on with."""
    digest = hashlib.sha256(np.ascontiguousarray(source.labels).tobytes())
    for index in range(len(source)):
        digest.update(os.fsencode(source.ids[index]) + b"\0")
    augment = trained.recipe.augment.model_dump(mode="json")
    with trained.weights.open("rb") as file:
        weights = sha256_of(file)
    return {
        "weights": str(trained.weights),
        "weights_sha256": weights,
        "layer": layer,
        **{key: augment[key] for key in PREPARED if key != "train_size"},
        "images": len(source),
        "images_sha256": digest.hexdigest(),
        "batch_size": batch_size,
        "device": device.type,
        "precision": evaluation_precision(trained.recipe, device),
        "version": VERSION,
    }


def is_features(file: Path) -> bool:
    """Whether a file is a table of features: one that may be written anew."""
    try:
        return KEY.encode() in (pq.read_schema(file).metadata or {})
    except (OSError, pa.ArrowException):
        return False
