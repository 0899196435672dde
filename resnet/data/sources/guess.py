"""What data a path holds, for commands that are given one in place of a recipe."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from recipes.text import listed
from resnet.data.sources.files import expanded
from resnet.data.sources.huggingface import parquet_files
from resnet.data.sources.image_folder import TRAIN, VAL
from resnet.data.sources.shards import holds_shards


class Splits(NamedTuple):
    """Folders in a folder that holds both a training and a validation set."""

    train: str
    val: list[str]
    """The usual one first."""
    others: list[str]


def splits_in(folder: Path) -> Splits | None:
    """None where a folder lacks either. Hidden folders are passed over."""
    if not folder.is_dir():
        return None
    with os.scandir(folder) as entries:
        found = {entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()}
    train, val = (sorted((n for n in found if n.lower() in names), key=_rank(names)) for names in (TRAIN, VAL))
    if not train or not val:
        return None
    others = sorted(found - {train[0], *val})
    return Splits(str(folder / train[0]), [str(folder / name) for name in val], others)


def _rank(names: tuple[str, ...]) -> Callable[[str], tuple[int, str]]:
    return lambda name: (names.index(name.lower()), name)


def guess_data(path: str) -> tuple[dict[str, Any], list[str]]:
    """Keys of a recipe's `data` for a folder or file: of splits, of classes, of parquet files, of shards; a list.

    Beside them notes, a line each, on what of it is left out. Raises ValueError where there is none.
    """
    place = expanded(path)
    if not place.exists():
        raise ValueError(f"there is no {place}: give a folder of images, a CSV file, parquet files, or recipe=NAME")
    if place.is_file():
        return {"source": "huggingface" if place.suffix == ".parquet" else "csv", "train": path}, []
    if holds_shards(place):
        return {"source": "shards", "train": path}, []
    if _holds_rows(place):
        return {"source": "huggingface", "train": path, **_val_split(place)}, []
    if splits := splits_in(place):
        train, (val, *more), others = splits
        left = [*map(os.path.basename, more), *others]
        notes = [f"{path}: left out, beside training and validation images: {listed(left)}"] if left else []
        return {"source": "image_folder", "train": train, "val": val}, notes
    return {"source": "image_folder", "train": path}, []


def _val_split(folder: Path) -> dict[str, str]:
    """The split to validate on where it is called otherwise than the recipe's default, as far as the files tell."""
    others = [split for split in parquet_files(folder) if split != "train"]
    return {"val_split": others[0]} if len(others) == 1 else {}


def _holds_rows(folder: Path) -> bool:
    """Whether a folder is of parquet files, or one that save_to_disk wrote."""
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return True
    return any(next(folder.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet"))
