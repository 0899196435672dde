"""Image folders: one folder a class, or ILSVRC's flat validation folder with a list of its labels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from recipes.schema.data import ImageFolderData
from recipes.text import listed, plural
from resnet.data.sources.files import (
    RULES,
    THREADS,
    Files,
    Lister,
    Names,
    Place,
    Seen,
    digest_of_texts,
    existing,
    expanded,
    lists_itself,
)

_SHAPE = "It should hold one folder a class, as in train/dog/1.jpg."
_IMAGENET = """ImageNet: log in at image-net.org, download
ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar and unpack them into such folders; or take it from the hub with
data.source=huggingface data.train=ILSVRC/imagenet-1k (an account that accepted its terms, and `hf auth login`)."""

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")

ARRAYS = (".npy",)
"""Endings of arrays of bands, which are the images of a folder that holds none with the endings above."""

TRAIN, VAL = ("train", "training"), ("val", "valid", "validation", "test", "testing")
"""What folders of training and of validation images are called, the usual name first."""
_SPLITS = {*TRAIN, *VAL}


def open_image_folder(data: ImageFolderData, lister: Lister = lists_itself) -> tuple[Files, Files | None]:
    """Training and validation images; the second is None where `val` is null."""
    place = _place(data.train)
    train = lister("data.train", place, lambda: read_folder(_existing(data.train, "data.train"), "data.train"))
    if data.val is None:
        return train, None
    place = _place(data.val, train.classes, data.val_labels)
    return train, lister("data.val", place, lambda: _val(data, train.classes))


def _val(data: ImageFolderData, classes: list[str]) -> Files:
    assert data.val is not None
    folder = _existing(data.val, "data.val")
    if data.val_labels is not None:
        return _flat_folder(folder, existing(data.val_labels, "data.val_labels"), classes)
    return read_folder(folder, "data.val", classes)


def _place(path: str, classes: list[str] | None = None, labels: str | None = None) -> Place:
    """What a listing leans on: the folder, the training images' classes, and the list of labels."""
    terms = {"source": "image_folder", "rules": RULES, "folder": str(expanded(path))}
    terms |= {} if classes is None else {"classes": digest_of_texts(classes)}
    return Place(expanded(path), terms | ({} if labels is None else {"labels": str(expanded(labels))}))


def _existing(path: str, key: str) -> Path:
    return existing(path, key, _hint(path))


def _hint(path: str) -> str:
    """What to do where there is no such folder."""
    return f"{_SHAPE} {_IMAGENET}" if "imagenet" in path.lower() else _SHAPE


def read_folder(root: Path, key: str, classes: list[str] | None = None) -> Files:
    """The images below each class's folder, at any depth, in sorted order; hidden files and folders are passed over.

    Without `classes` they are the sorted names of the folders, each of which has to hold an image; with them, other
    folders of images are an error. Raises ValueError.
    """
    seen = Seen(root)
    folders, loose = _class_folders(root, key, seen)
    with ThreadPoolExecutor(THREADS) as pool:
        names = list(pool.map(lambda folder: Names(sorted(images_below(seen, folder))), folders))
        if not any(names):
            names = list(pool.map(lambda folder: Names(sorted(images_below(seen, folder, ARRAYS))), folders))
    if not folders:
        what = f"{plural(loose, 'image')}, but no folder for each class" if loose else "no folders of images"
        flat = " (for a flat validation folder give data.val_labels)" if loose and key == "data.val" else ""
        raise ValueError(f"{key}: {root} holds {what}{flat}")
    known = set(classes or ())
    if classes is None:
        if empty := [folder for folder, found in zip(folders, names, strict=True) if not found]:
            raise ValueError(f"{key}: no images in the class folder {listed(empty)} of {root}: fill or remove it")
        classes = folders
    elif strange := [folder for folder, found in zip(folders, names, strict=True) if found and folder not in known]:
        raise ValueError(f"{key}: {root} holds classes that the training images do not have: {listed(strange)}")
    index = {name: number for number, name in enumerate(classes)}
    labels = [index.get(folder, -1) for folder in folders]
    counts = [len(found) for found in names]
    files = Files(root, Names.chained(names), np.repeat(labels, counts), classes)
    files.seen = seen
    return files


def images_in(folder: Path) -> list[str]:
    """Sorted names of the images that lie directly in a folder."""
    with os.scandir(folder) as entries:
        files = sorted(entry.name for entry in entries if not entry.is_dir())
    return [name for name in files if is_image(name)] or [name for name in files if is_image(name, ARRAYS)]


def _class_folders(root: Path, key: str, seen: Seen) -> tuple[list[str], int]:
    """Sorted names of the folders in `root`, and how many images lie beside them."""
    if not root.is_dir():
        raise ValueError(f"{key}: {root} is a file, not a folder of images")
    seen.note("")
    with os.scandir(root) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    folders = sorted(entry.name for entry in visible if entry.is_dir())
    if _are_splits(folders):
        wanted = next((name for name in folders if name.lower().startswith(key.removeprefix("data."))), folders[-1])
        raise ValueError(f"{key}: {root} holds splits, not classes: give {key}={root / wanted}, or another of them")
    return folders, sum(is_image(entry.name) for entry in visible)


def split_folders(root: Path) -> list[str]:
    """Sorted names of the folders in `root` if all are called as splits (train, val, test) are; else none."""
    if not root.is_dir():
        return []
    with os.scandir(root) as entries:
        folders = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    return folders if _are_splits(folders) else []


def _are_splits(folders: list[str]) -> bool:
    return bool(folders) and all(folder.lower() in _SPLITS for folder in folders)


def leads_up(entry: os.DirEntry[str], folder: str | Path) -> bool:
    """Whether an entry of a folder is a link to the folder itself or to one above it, which has no end."""
    if not entry.is_symlink():
        return False
    here, there = os.path.realpath(folder), os.path.realpath(entry.path)
    return here == there or here.startswith(os.path.join(there, ""))


def images_below(seen: Seen, folder: str, endings: tuple[str, ...] = EXTENSIONS) -> Iterator[str]:
    """Names, from the root on, of the images below one of its folders."""
    here = os.path.join(seen.root, folder)
    seen.note(folder)
    with os.scandir(here) as entries:
        for entry in entries:
            if is_image(entry.name, endings):
                yield f"{folder}/{entry.name}"
            elif not entry.name.startswith(".") and entry.is_dir() and not leads_up(entry, here):
                yield from images_below(seen, f"{folder}/{entry.name}", endings)


def is_image(name: str, endings: tuple[str, ...] = EXTENSIONS) -> bool:
    """Whether a file's name is that of an image, and not hidden."""
    return name.lower().endswith(endings) and not name.startswith(".")


def _flat_folder(folder: Path, list_file: Path, classes: list[str]) -> Files:
    seen = Seen(folder)
    seen.note("")
    seen.note(str(list_file))
    names = images_in(folder)
    if not names:
        raise ValueError(f"data.val: no images directly in {folder}, which data.val_labels is for")
    by_stem = {os.path.splitext(name)[0]: name for name in names} | {name: name for name in names}
    lines = _label_lines(list_file)
    if os.path.basename(lines[0][1]) not in by_stem:
        del lines[0]  # a header
    if unknown := [name for _, name, _ in lines if os.path.basename(name) not in by_stem]:
        raise ValueError(f"data.val_labels: {list_file} names images that are not in {folder}: {listed(unknown)}")
    numbers = _class_numbers(lines, list_file, classes)
    label = {by_stem[os.path.basename(name)]: number for (_, name, _), number in zip(lines, numbers, strict=True)}
    if missing := [name for name in names if name not in label]:
        raise ValueError(f"data.val_labels: {list_file} has no line for {listed(missing)} of {folder}")
    files = Files(folder, names, np.array([label[name] for name in names]), classes)
    files.seen = seen
    return files


def _label_lines(path: Path) -> list[tuple[int, str, str]]:
    """Line number, image and class of each line that is not blank."""
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        separator = next((mark for mark in ",;\t" if mark in line), None)
        name, _, label = (part.strip() for part in line.strip().partition(separator or " "))
        if name:
            lines.append((number, name, label))
    if not lines:
        raise ValueError(f"data.val_labels: {path} is empty")
    if all(name.isdecimal() and not label for _, name, label in lines):
        raise ValueError(
            f"data.val_labels: {path} holds numbers only. ILSVRC2012_validation_ground_truth.txt numbers the classes "
            "in another order than their sorted folders: use Kaggle's LOC_val_solution.csv, or lines of 'file wnid'"
        )
    return lines


def _class_numbers(lines: list[tuple[int, str, str]], path: Path, classes: list[str]) -> list[int]:
    """The class of each line: by name, by the name its text starts with (in Kaggle's, boxes follow), or by index."""
    index = {name: number for number, name in enumerate(classes)}
    by_name = [index.get(label, index.get(label.split(" ")[0], -1)) for _, _, label in lines]
    if -1 not in by_name:
        return by_name
    if all(label.isdecimal() and int(label) < len(classes) for _, _, label in lines):
        return [int(label) for _, _, label in lines]
    number, name, label = lines[by_name.index(-1)]
    raise ValueError(
        f"data.val_labels: {path} line {number}: {name} has the class {label!r}, which is neither a training class "
        f"({listed(classes, 3)}) nor, like those of all lines, an index below {len(classes)}"
    )
