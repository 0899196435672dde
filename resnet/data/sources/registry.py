"""Sources of labelled images: what they have in common, which there are, and the parts of them that a run uses."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from recipes.schema.data import Data
from resnet.data.arrays import BrokenImage
from resnet.data.sources.banded import Banded, of_channels
from resnet.data.sources.cifar import open_cifar
from resnet.data.sources.csv_manifest import open_csv, wanted_of_csv
from resnet.data.sources.files import Files, Lister, Place, Wanted, existing, expanded, lists_itself
from resnet.data.sources.huggingface import open_huggingface
from resnet.data.sources.image_folder import open_image_folder
from resnet.data.sources.own import Own, open_own
from resnet.data.sources.shapes import open_shapes
from resnet.data.sources.shards import open_shards
from resnet.data.sources.source import Source, targets_of
from resnet.data.sources.synthetic import open_synthetic

_SAMPLED, _LOOKED_AT = 64, 8


SOURCES: dict[str, Callable[[Any], tuple[Source, Source | None]]] = {
    "image_folder": open_image_folder,
    "huggingface": open_huggingface,
    "csv": open_csv,
    "shards": open_shards,
    "cifar10": open_cifar,
    "cifar100": open_cifar,
    "shapes": open_shapes,
    "synthetic": open_synthetic,
    "plugin": open_own,
}
"""By `data.source`: a function from the recipe's data to training and validation images (None: none of their own)."""


LISTED = ("image_folder", "csv")
"""Sources whose functions take a `Lister`: they list, or look for, a file an image."""


_WANTED: dict[str, Callable[[Any], dict[str, Wanted]]] = {"csv": wanted_of_csv}
"""By `data.source`, where not all is read that lies where its keys point at."""


def wanted(data: Data) -> dict[str, Wanted]:
    """By key of `data` which files are read. Raises ValueError where they are not there."""
    if data.source in _WANTED:
        return _WANTED[data.source](data)
    found = {key: existing(path, f"data.{key}") for key, path in data.paths().items() if path is not None}
    return {
        key: Wanted(path, "", None) if path.is_dir() else Wanted(path.parent, path.name, [path.name])
        for key, path in found.items()
    }


class Subset:
    """The images of a source at `indices` (n,)."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self._source, self._indices = source, indices
        self.labels = source.labels[indices]
        self.classes = source.classes
        self.targets = None if (targets := targets_of(source)) is None else targets[indices]

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> bytes | torch.Tensor:
        return self._source.read(int(self._indices[index]))

    def describe(self, index: int) -> str:
        return self._source.describe(int(self._indices[index]))


class Copied:
    """A source that is read from a copy, and names its images by their own places: `own` is by the copy's."""

    def __init__(self, source: Source, own: Mapping[str, str]) -> None:
        self._source, self._own = source, own
        self.labels, self.classes, self.targets = source.labels, source.classes, targets_of(source)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes | torch.Tensor:
        return self._source.read(index)

    def describe(self, index: int) -> str:
        return _in_own_words(self._source.describe(index), self._own)


def _in_own_words(text: str, own: Mapping[str, str]) -> str:
    for copy, place in own.items():
        text = text.replace(copy, place)
    return text


def _open_source(data: Data, copies: Mapping[str, str] | None, lister: Lister) -> tuple[Source, Source | None]:
    """Training and validation images; of copies, by key, it is spoken as if they were what was copied."""
    if not copies:
        return SOURCES[data.source](data, *((lister,) if data.source in LISTED else ()))
    own = {copy: str(expanded(getattr(data, key))) for key, copy in copies.items()}
    try:
        train, val = _open_source(data.model_copy(update=dict(copies)), None, lister)
    except ValueError as error:
        raise ValueError(_in_own_words(str(error), own)) from error
    return Copied(train, own), val and Copied(val, own)


class Splits(NamedTuple):
    """The images of a recipe, no image in two of them, with the same classes."""

    train: Source
    val: Source
    test: Source | None = None
    """Those that a run is tested on at its end; None: there are none."""


def open_sources(
    data: Data, copies: Mapping[str, str] | None = None, channels: int = 3, lister: Lister = lists_itself
) -> tuple[Source, Source]:
    """Training and validation images of a recipe, as `open_splits`; those to test on are left out."""
    train, val, _ = _open(data, copies, channels, lister)
    return train, val


def open_splits(
    data: Data, copies: Mapping[str, str] | None = None, channels: int = 3, lister: Lister = lists_itself
) -> Splits:
    """All images of a recipe. Raises ValueError naming the key to change.

    copies: where the files of keys have been copied to (`resnet.data.stage`). channels: `model.in_channels`, which a
    few images are checked to have where it is not 3. lister: how the files of folders and CSV files are come by.
    """
    splits = _open(data, copies, channels, lister)
    if splits.test is not None or not data.is_tested:
        return splits
    test = _of_channels(_open_test(data, copies, lister), data, channels)
    if not len(test):
        raise ValueError(f"no images to test on: {getattr(data, 'test', None) or data.train} holds none")
    return splits._replace(test=test)


def _open(data: Data, copies: Mapping[str, str] | None, channels: int, lister: Lister) -> Splits:
    """All images but for those to test on that lie in a place of their own."""
    train, val = _open_source(data, copies, lister)
    for source in (train, val):
        if isinstance(source, Own):
            source.channels = channels
    test = None
    if data.test_fraction is not None:
        kept, aside = carve(train.labels, data.test_fraction)
        train, test = Subset(train, kept), Subset(train, aside)
    if data.fold_of is not None:
        kept, held = fold(train.labels, *data.fold_of)
        if not len(held):
            raise ValueError(f"data.fold={data.fold} of {len(train)} images holds none: give fewer folds")
        train, val = Subset(train, kept), Subset(train, held)
    elif data.val_fraction is not None:
        # Of all images, also of those to test on.
        kept, held = carve(train.labels, data.val_fraction / (1 - (data.test_fraction or 0)))
        train, val = Subset(train, kept), Subset(train, held)
    assert val is not None
    for source, what in ((val, "validate"), (test, "test")):
        if source is not None and not len(source):
            why = "there is one a class" if isinstance(source, Subset) else f"{data.val or data.train} holds none"
            raise ValueError(f"no images to {what} on: {why}")
    train, val = _at_most(train, data.max_train), _at_most(val, data.max_val)
    train, val = (_of_channels(source, data, channels) for source in (train, val))
    return Splits(train, val, test and _of_channels(test, data, channels))


_AS_VALIDATION = {"val": "test", "val_split": "test_split"}
"""Keys of validation images, by which those of test images are opened, in the same way."""


def _open_test(data: Data, copies: Mapping[str, str] | None, lister: Lister) -> Source:
    """The images of `data.test`."""

    def test_lister(key: str, place: Place, listing: Callable[[], Files]) -> Files:
        return lister("data.test" if key == "data.val" else key, place, listing)

    keys = type(data).model_fields
    update = {key: getattr(data, other, None) for key, other in _AS_VALIDATION.items() if key in keys}
    update |= {"val_labels": None} if "val_labels" in keys else {}
    moved = {"val" if key == "test" else key: copy for key, copy in (copies or {}).items() if key != "val"}
    data = data.model_copy(update=update)
    try:
        _, test = _open_source(data, moved, test_lister)
    except ValueError as error:
        raise ValueError(re.sub(r"data\.val\b|data\.val_split\b", _named_test, str(error))) from error
    assert test is not None
    return test


def _named_test(found: re.Match[str]) -> str:
    return found[0].replace("val", "test")


def _of_channels(source: Source, data: Data, channels: int) -> Source:
    """A source, decoded to its channels. Raises ValueError where its images have others."""
    made = of_channels(source, channels, data.pixel_max)
    if isinstance(made, Banded):
        made.check()
    elif data.source == "shards":
        # Whose pixels need no decoding, and so would be taken as they are.
        Banded(source, channels, None).check(1)
    elif any(source.describe(index).endswith(".npy") for index in evenly(len(source), _LOOKED_AT).tolist()):
        Banded(source, channels, None).check()
    return made


def carve(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of the images to keep for training and of those put aside, `fraction` of each class.

    A class of two or more images has at least one on either side. Depends on nothing but the labels' order.
    """
    carved = []
    for members in np.split(_by_class(labels), np.cumsum(np.unique(labels, return_counts=True)[1])[:-1]):
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        carved.append(members[:count])
    aside = np.sort(np.concatenate(carved)) if carved else np.empty(0, dtype=np.int64)
    return np.setdiff1d(np.arange(len(labels)), aside), aside


def fold(labels: np.ndarray, number: int, of: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of the images to train on in a fold (1 to `of`), and of those held out to validate on.

    Each image is held out in one of the folds; of a class, and of all, they hold the same number or one less. Depends
    on nothing but the labels' order.
    """
    place = np.empty(len(labels), dtype=np.int64)
    place[_by_class(labels)] = np.arange(len(labels))
    held = place % of == number - 1
    return np.flatnonzero(~held), np.flatnonzero(held)


def _by_class(labels: np.ndarray) -> np.ndarray:
    """Indices of the images in the order of their classes, those of a class mixed."""
    shuffled = np.argsort(np.random.Philox(key=0).random_raw(len(labels)), kind="stable")
    return shuffled[np.argsort(labels[shuffled], kind="stable")]


def _at_most(source: Source, count: int | None) -> Source:
    return source if count is None or count >= len(source) else Subset(source, spread(source.labels, count))


def spread(labels: np.ndarray, count: int) -> np.ndarray:
    """Sorted indices of `count` images at even distances in the order of their classes: shares stay what they are."""
    by_class = np.argsort(labels, kind="stable")
    return np.sort(by_class[evenly(len(labels), count)])


def sampled(source: Source) -> Iterator[bytes | torch.Tensor]:
    """What a source reads of 64 images, spread evenly over all, where they can be read."""
    for index in evenly(len(source), min(_SAMPLED, len(source))).tolist():
        with contextlib.suppress(OSError, BrokenImage):
            yield source.read(index)


def evenly(total: int, count: int) -> np.ndarray:
    """`count` of range(total), in order, at even distances from one another and from the ends."""
    return (2 * np.arange(count) + 1) * total // (2 * max(1, count))
