"""Hugging Face data sets: parquet files, a folder written by save_to_disk, or a name on the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recipes.schema.data import HuggingFaceData
from recipes.text import listed, plural
from resnet.data.arrays import BrokenImage
from resnet.data.sources.files import conversions_of, existing, expanded

_SAME_SPLIT = {"val": "validation", "valid": "validation", "dev": "validation", "training": "train", "testing": "test"}
_IMAGES, _LABELS = ("image", "img"), ("label", "labels")
"""What the columns are usually called."""
_CLASSES = ("int", "uint", "bool", "string", "large_string", "dictionary")
"""Types of Arrow's that classes are given in, by the beginnings of their names."""


class _Cells:
    """A column's cells as Arrow keeps them, on which the library itself spends ten times longer."""

    def __init__(self, rows: Any, column: str) -> None:
        self._chunks = rows.data.column(column).chunks
        self._ends = np.cumsum([len(chunk) for chunk in self._chunks])

    def __getitem__(self, index: int) -> Any:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._chunks[number][index - int(self._ends[number])]


class HuggingFace:
    """A source (see `source.Source`) of the rows of one split; `images` holds the image column alone, undecoded."""

    def __init__(self, images: Any, column: str, labels: np.ndarray, classes: list[str], where: str) -> None:
        self._images, self._column, self._where = images, column, where
        self.labels = labels
        self.classes = classes
        self._cells: _Cells | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        # Sent to another process the rows are only named, their cells copied.
        return self.__dict__ | {"_cells": None}

    def read(self, index: int) -> bytes:
        if self._cells is None:
            self._cells = _Cells(self._images, self._column)
        image = self._cells[index]
        if not image.is_valid:
            raise BrokenImage("the row has no image")
        if (data := image["bytes"].as_py()) is not None:
            return data
        if (path := image["path"].as_py()) is None:
            raise BrokenImage("the row has neither an image nor a path of one")
        with open(path, "rb") as file:
            return file.read()

    def describe(self, index: int) -> str:
        return f"{self._where} row {index}"


def open_huggingface(data: HuggingFaceData) -> tuple[HuggingFace, HuggingFace | None]:
    """Training and validation images; the second is None where they are to be carved from the first."""
    splits = _splits(data.train, "data.train", data.config)
    rows = _pick(splits, data.train_split, data.train, "data.train_split")
    train = _source(rows, data, None, f"{data.train} {data.train_split}")
    if data.val is None and data.val_split is None:
        return train, None
    where = data.train if data.val is None else data.val
    if data.val is not None:
        splits = _splits(data.val, "data.val", data.config)
    asked = data.val_split
    if data.val is not None and len(splits) == 1:
        asked = next(iter(splits))  # a folder for validation alone needs no split named
    if asked is None:
        raise ValueError(f"data.val={data.val} has the splits {', '.join(splits)}: name one with data.val_split")
    rows = _pick(splits, asked, where, "data.val_split")
    return train, _source(rows, data, train.classes, f"{where} {asked}")


def open_given_rows(path: str, like: HuggingFaceData | None) -> HuggingFace:
    """The rows of a parquet file, or of a folder of these or of save_to_disk; its labels are -1 where there are none.

    like: a recipe's data, whose split and columns are taken where there are such. Raises ValueError.
    """
    import datasets

    splits = _splits(path, path, None)
    asked = next(iter(splits)) if len(splits) == 1 else like and like.val_split
    alike = [name for name in splits if asked and _SAME_SPLIT.get(name, name) == _SAME_SPLIT.get(asked, asked)]
    if len(alike) != 1:
        files = parquet_files(expanded(path))
        example = next(iter(files.values()))[0] if files else f"{path}/{list(splits)[-1]}"
        raise ValueError(f"{path} holds the splits {', '.join(splits)}: give one of them, as {example}")
    rows = splits[alike[0]]
    column = _given_column(rows, like and like.image_column, datasets.Image, _IMAGES)
    if column is None:
        raise ValueError(f"{path} has no column of images; there are {', '.join(rows.features)}")
    images = _undecoded(rows, column, path)
    label = _given_column(rows, like and like.label_column, datasets.ClassLabel, _LABELS)
    return HuggingFace(images, column, *_given_labels(rows, label), path)


def _given_column(rows: Any, soft: str | None, kind: type, usual: tuple[str, ...]) -> str | None:
    """The column named `soft` if there is one, else the only one of that feature type, else one of a usual name."""
    if soft in rows.features:
        return soft
    found = [column for column, feature in rows.features.items() if isinstance(feature, kind)]
    return found[0] if len(found) == 1 else next((name for name in usual if name in rows.features), None)


def _given_labels(rows: Any, column: str | None) -> tuple[np.ndarray, list[str]]:
    """Labels (n,) as indices into their names, -1 for none."""
    import datasets

    if column is None:
        return np.full(len(rows), -1), []
    values = rows.select_columns([column]).with_format("arrow")[:][column].combine_chunks()
    feature = rows.features[column]
    if isinstance(feature, datasets.ClassLabel) and feature.names:
        return np.maximum(values.fill_null(-1).to_numpy(zero_copy_only=False), -1), list(feature.names)
    encoded = values.dictionary_encode()
    names = [str(text) for text in encoded.dictionary.to_pylist()]
    return encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), names


def _splits(path: str, key: str, config: str | None) -> Mapping[Any, Any]:
    """All splits by name."""
    import datasets  # takes seconds

    folder = expanded(path)
    if not folder.exists():
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) or path.startswith("."):
            existing(path, key, "It should be a folder of parquet files or of save_to_disk, or a name on the hub.")
        return _from_hub(path, key, config)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        loaded = datasets.load_from_disk(str(folder))
        return loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    files = parquet_files(folder)
    if not files:
        raise ValueError(f"{key}: {folder} holds no parquet files, nor what save_to_disk writes")
    try:
        return datasets.load_dataset("parquet", data_files=files, cache_dir=conversions_of(folder))
    except Exception as error:  # the builder wraps whatever pyarrow raises
        raise ValueError(f"{key}: the parquet files of {folder} cannot be read: {_first_line(error)}") from None


def _from_hub(name: str, key: str, config: str | None) -> Mapping[Any, Any]:
    import datasets

    try:
        return datasets.load_dataset(name, config)
    except Exception as error:  # hub, network, permission and configuration each have errors of their own
        raise ValueError(
            f"{key}={name}: there is no folder {expanded(name)}, and as a data set on the hub it could not be loaded: "
            f"{_first_line(error)}. Check the name and the connection (a gated set needs accepted terms and "
            "`hf auth login`), or download its parquet files and give their folder"
        ) from None


def _first_line(error: BaseException) -> str:
    """The message of the innermost cause, which says more than the wrapper's."""
    while error.__cause__ is not None and str(error.__cause__):
        error = error.__cause__
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")[:300]


def parquet_files(folder: Path) -> dict[str, list[str]]:
    """Files by split: from their names (train-00000-of-00002.parquet) or folders (train/0.parquet), else "train"."""
    if folder.is_file():
        return {"train": [str(folder)]}
    files: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        parts = file.relative_to(folder).with_suffix("").parts
        if not any(part.startswith(".") for part in parts):
            files.setdefault(_split_of(parts), []).append(str(file))
    return files


def _split_of(parts: tuple[str, ...]) -> str:
    for part in reversed(parts):
        for word in re.split(r"[^a-z0-9]+", part.lower()):
            if word in ("train", "test", "validation", *_SAME_SPLIT):
                return _SAME_SPLIT.get(word, word)
    named = re.fullmatch(r"(\w+)-\d+-of-\d+", parts[-1])
    return named[1] if named else "train"


def _pick(splits: Mapping[Any, Any], asked: str, where: str, key: str) -> Any:
    alike = [name for name in splits if _SAME_SPLIT.get(name, name) == _SAME_SPLIT.get(asked, asked)]
    if asked in splits or len(alike) == 1:
        return splits[asked if asked in splits else alike[0]]
    raise ValueError(f"{key}={asked}: {where} has no such split; it has {', '.join(splits)}")


def _column(rows: Any, name: str | None, kind: type, usual: tuple[str, ...], key: str) -> str:
    """The column of that name, else the only one of that feature type, else the only one of a usual name."""
    columns = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in rows.features.items())
    if name is not None:
        if name not in rows.features:
            raise ValueError(f"{key}={name}: no such column; there are {columns}")
        return name
    found = [column for column, feature in rows.features.items() if isinstance(feature, kind)]
    called = found if len(found) == 1 else [column for column in found or rows.features if column in usual]
    if len(called) != 1:
        both = f"{listed(called)} both could be it" if called else f"none is called {' or '.join(usual)}"
        raise ValueError(f"{key} must name a column: {len(found)} of {columns} are of type {kind.__name__}, and {both}")
    return called[0]


def _labels(rows: Any, name: str | None, where: str) -> tuple[list[str], np.ndarray, list[str]]:
    """The distinct labels as text, each row's index into them (n,), and all classes in order."""
    import datasets

    column = _column(rows, name, datasets.ClassLabel, _LABELS, "data.label_column")
    values = rows.select_columns([column]).with_format("arrow")[:][column]
    if values.null_count:
        raise ValueError(f"{where}: {plural(values.null_count, 'row')} without {column}")
    if not str(values.type).startswith(_CLASSES):
        raise ValueError(f"{where}: column {column} holds {values.type}, neither integers nor text")
    distinct, index = np.unique(values.to_numpy(), return_inverse=True)
    feature = rows.features[column]
    if isinstance(feature, datasets.ClassLabel) and feature.names:
        if len(distinct) and distinct[0] < 0:
            raise ValueError(f"{where}: {column} is {distinct[0]} in some rows: this split comes without labels")
        return [feature.names[value] for value in distinct], index, list(feature.names)
    names = [str(value) for value in distinct]
    return names, index, names


def _source(rows: Any, data: HuggingFaceData, classes: list[str] | None, where: str) -> HuggingFace:
    """A split as a source, with its own classes if none are given."""
    import datasets

    names, index, own = _labels(rows, data.label_column, where)
    classes = own if classes is None else classes
    number = {name: at for at, name in enumerate(classes)}
    if strange := [name for name in names if name not in number]:
        raise ValueError(f"{where} has labels that the training images do not have: {listed(strange)}")
    column = _column(rows, data.image_column, datasets.Image, _IMAGES, "data.image_column")
    images = _undecoded(rows, column, "data.image_column")
    labels = np.array([number[name] for name in names], dtype=np.int64)
    return HuggingFace(images, column, labels[index], classes, where)


def _undecoded(rows: Any, column: str, where: str) -> Any:
    """A column of images alone, as the bytes of their files."""
    import datasets

    try:
        return rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except Exception as error:  # pyarrow's casts raise several kinds
        raise ValueError(f"{where}: {column} holds no images: {_first_line(error)}") from None
