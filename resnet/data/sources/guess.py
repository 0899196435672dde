"""What data a path holds, for commands that are given one in place of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resnet.data.sources.files import expanded
from resnet.data.sources.huggingface import parquet_files
from resnet.data.sources.image_folder import split_folders
from resnet.data.sources.shards import records_name

_TRAIN, _VAL = ("train", "training"), ("val", "valid", "validation", "test", "testing")


def guess_data(path: str) -> dict[str, Any]:
    """Keys of a recipe's `data` for a folder or file: of splits, of classes, of parquet files, of shards; a list.

    Raises ValueError where there is none.
    """
    place = expanded(path)
    if not place.exists():
        raise ValueError(f"there is no {place}: give a folder of images, a CSV file, parquet files, or recipe=NAME")
    if place.is_file():
        return {"source": "huggingface" if place.suffix == ".parquet" else "csv", "train": path}
    if (place / records_name("train")).is_file():
        return {"source": "shards", "train": path}
    if _holds_rows(place):
        return {"source": "huggingface", "train": path, **_val_split(place)}
    folders = {name.lower(): str(place / name) for name in split_folders(place)}
    train, val = (next((folders[name] for name in names if name in folders), None) for names in (_TRAIN, _VAL))
    if train is not None and val is not None:
        return {"source": "image_folder", "train": train, "val": val}
    return {"source": "image_folder", "train": path}


def _val_split(folder: Path) -> dict[str, str]:
    """The split to validate on where it is called otherwise than the recipe's default, as far as the files tell."""
    others = [split for split in parquet_files(folder) if split != "train"]
    return {"val_split": others[0]} if len(others) == 1 else {}


def _holds_rows(folder: Path) -> bool:
    """Whether a folder is of parquet files, or one that save_to_disk wrote."""
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return True
    return any(next(folder.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet"))
