"""`resnet check-data`: what is wrong with the images of a training, found by reading each of them once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recipes.schema.data import ShardsData
from recipes.schema.recipe import Recipe
from recipes.text import listed
from resnet.data.sources.banded import of_channels
from resnet.data.sources.files import expanded
from resnet.data.sources.given import images_of, open_given, unmatched_text
from resnet.data.sources.guess import splits_in
from resnet.data.sources.huggingface import parquet_files
from resnet.data.sources.image_folder import split_folders
from resnet.data.sources.registry import open_sources
from resnet.data.sources.shards import holds_shards, open_shards
from resnet.data.sources.source import Source
from resnet.process.environment import usable
from resnet.tools.image_facts import Facts, Levels, Watch, levels_of, read_facts

MOST_APART = 16
"""Levels of 255 by which the mean colours of two images that look alike may differ."""
_WINDOW = 32
"""Images of one sketch that each is compared with: the next ones in the order of their brightness."""
LONG = 3
"""A longer side of more than this many times the shorter one is told."""


class Place(NamedTuple):
    """An image, by the part it is in and its index there."""

    part: int
    image: int


class Group(NamedTuple):
    """Images that are the same, or look alike."""

    places: list[Place]
    """In order: those of training first."""
    same_bytes: bool
    """Whether their files are equal; else the pixels are, or look so."""
    leak: bool
    """Whether some are for training and some for validation."""
    two_labels: bool


@dataclass
class Part:
    """The images for training, or for validation."""

    name: str
    source: Source
    found: Facts

    @property
    def facts(self) -> np.ndarray:
        """`image_facts.FACTS` (n,)."""
        return self.found.rows

    @property
    def broken(self) -> dict[int, str]:
        """By index: why an image cannot be read."""
        return self.found.broken

    @property
    def whole(self) -> np.ndarray:
        """The facts of the images that could be read."""
        return self.facts[self.facts["width"] > 0]

    @property
    def counts(self) -> np.ndarray:
        """Images of each class, broken ones included."""
        labels = self.source.labels
        return np.bincount(labels[labels >= 0], minlength=len(self.source.classes))

    def label(self, index: int) -> str:
        """The name of an image's class; empty where it has none."""
        label = int(self.source.labels[index])
        return self.source.classes[label] if label >= 0 else ""


@dataclass
class Checked:
    """What is known of the images."""

    parts: list[Part]
    """Training and, where there is such, validation."""
    same: list[Group]
    """Images with equal pixels."""
    alike: list[Group]
    """Images that look alike and are not the same, one of each `same`."""
    crop: int | None
    """Side in pixels of what training cuts out, where it is known."""
    stopped: bool
    """Whether it was ended early: images that were not come to are in `parts` without facts."""
    notes: list[str]
    """How things were matched, a line each."""
    levels: Levels | None = None
    """Of a sample of the training images; None: none of them could be read, or it was ended early."""

    @property
    def broken(self) -> list[tuple[Place, str]]:
        """Images that cannot be read, and why."""
        return [(Place(at, index), why) for at, part in enumerate(self.parts) for index, why in part.broken.items()]

    @property
    def spoils(self) -> bool:
        """Whether something is wrong that training or its figures suffer from: broken images, leaks, double labels."""
        return bool(self.broken) or any(group.leak or group.two_labels for group in self.same)

    def file(self, place: Place) -> str:
        return self.parts[place.part].source.describe(place.image)

    def label(self, place: Place) -> str:
        return self.parts[place.part].label(place.image)


class Opened(NamedTuple):
    """What is to be checked."""

    train: Source
    val: Source | None
    crop: int | None = None
    workers: int | None = None
    """Processes that read; None: one a core."""
    notes: tuple[str, ...] = ()


def open_recipe(recipe: Recipe) -> Opened:
    """The images of a recipe as training gets them: `val_fraction`, `max_train` and their like hold."""
    sizes = [recipe.augment.train_size, *(corner.size for corner in recipe.augment.progressive or ())]
    return Opened(*open_sources(recipe.data, channels=recipe.model.in_channels), max(sizes), recipe.data.num_workers)


def open_paths(
    train: list[str],
    val: list[str] | None = None,
    columns: tuple[str | None, str | None] | None = None,
    images: Path | None = None,
    channels: int = 3,
    pixel_max: int | None = None,
) -> Opened:
    """Images at paths (see `given.open_given`); a folder of train and val, or of shards, is both.

    channels, pixel_max: `model.in_channels` and `data.pixel_max`. Raises ValueError.
    """
    opened = _open_paths(train, val, columns, images)
    first, second = (source and of_channels(source, channels, pixel_max) for source in (opened.train, opened.val))
    return opened._replace(train=first, val=second)


def _open_paths(
    train: list[str],
    val: list[str] | None,
    columns: tuple[str | None, str | None] | None,
    images: Path | None,
) -> Opened:
    notes: list[str] = []
    if len(train) == 1 and holds_shards(expanded(train[0])):
        if len(val or ()) > 1:
            raise ValueError("beside shards, --val takes one folder of shards")
        return Opened(*open_shards(ShardsData(source="shards", train=train[0], val=val[0] if val else None)))
    if not val and len(train) == 1:
        train, val, notes = _parts_of(expanded(train[0]), train[0])
    first = open_given(train, None, columns, images)
    second = open_given(val, first.classes, columns, images) if val else None
    notes += [*first.notes, *(second.notes if second else ())]
    if second and second.unmatched and first.classes:
        notes.append(unmatched_text(second).replace("the network", "training"))
    return Opened(first, second, notes=tuple(dict.fromkeys(notes)))


def _parts_of(folder: Path, path: str) -> tuple[list[str], list[str], list[str]]:
    """The paths for training and for validation that a path stands for, and notes. Raises ValueError."""
    if splits := splits_in(folder):
        notes = [f"{path}: left out, beside training and validation images: {listed(splits.others)}"]
        return [splits.train], splits.val, notes if splits.others else []
    found = {name: [str(folder / name)] for name in split_folders(folder)}
    if not found and folder.is_dir() and next(images_of(folder), None) is None:
        files = parquet_files(folder)
        found = files if len(files) > 1 else {}
    if not found:
        return [path], [], []
    own = [name for name in found if name.lower().startswith("train")]
    if len(own) != 1:
        raise ValueError(f"{path} holds the splits {', '.join(found)}: give one of them, and --val another")
    return found.pop(own[0]), [file for files in found.values() for file in files], []


def check_data(opened: Opened, watch: Watch = lambda chunks, images: chunks) -> Checked:
    """Read every image once, in worker processes.

    watch: sees the chunks as they come (see `image_facts.read_facts`). Ctrl-C ends it early with what is known by then.
    65 bytes are kept of an image. Two different images have the same digest in one of 20 million checks of
    ImageNet-1k.
    """
    sources = [source for source in (opened.train, opened.val) if source is not None]
    found, stopped = read_facts(sources, usable() if opened.workers is None else opened.workers, watch)
    parts = [Part(*each) for each in zip(("train", "val"), sources, found, strict=False)]
    facts = np.concatenate([part.facts for part in parts])
    grouping = _Grouping(parts, facts)
    levels = None if stopped else levels_of(opened.train)
    return Checked(parts, grouping.same(), grouping.alike(), opened.crop, stopped, list(opened.notes), levels)


class _Grouping:
    """Finds what belongs together among the images of all parts, numbered through."""

    def __init__(self, parts: list[Part], facts: np.ndarray) -> None:
        self._facts = facts
        self._whole = np.flatnonzero(facts["width"])
        self._labels = np.concatenate([part.source.labels for part in parts])
        self._training = len(parts[0].facts)

    def same(self) -> list[Group]:
        pixels = self._facts["pixels"][self._whole]
        order = np.argsort(pixels, kind="stable")
        cuts = np.flatnonzero(np.diff(pixels[order])) + 1
        starts, ends = np.append(0, cuts), np.append(cuts, len(order))
        several = np.flatnonzero(ends - starts > 1)
        members = (self._whole[order[starts[run] : ends[run]]].tolist() for run in several)
        return sorted(map(self._group, members), key=_worst_first)

    def alike(self) -> list[Group]:
        """By sketches that differ in a bit at most, and colours by MOST_APART.

        (Of 200 photographs that were halved in size, or compressed anew, this finds 95 to 99 in 100.)
        """
        first = np.unique(self._facts["pixels"][self._whole], return_index=True)[1]
        images = self._whole[first]
        # An even surface has no shape.
        images = images[self._facts["shape"][images] != 0]
        pairs = [pair for some in self._pairs(images) for pair in some.tolist()]
        return sorted(map(self._group, _connected(pairs)), key=_worst_first)

    def _pairs(self, images: np.ndarray) -> Iterator[np.ndarray]:
        """Pairs (n, 2) that tie together the images that look alike, few more than it needs.

        Images of one sketch are paired first, then those whose sketches are equal without one of the bits.
        """
        images = images[np.argsort(self._facts["colours"][images].sum(1), kind="stable")]
        shapes = self._facts["shape"][images]
        colours = self._facts["colours"][images].astype(np.int16)
        tied = np.arange(len(images))
        for bit in (0, *range(4, 64)):  # of the eight bytes, 60 bits are drawn
            left_out = shapes & ~np.uint64(1 << bit)
            order = np.argsort(left_out, kind="stable")
            for at, other in _side_by_side(left_out[order], shapes[order] if bit else None):
                one, two = order[at], order[other]
                new = tied[one] != tied[two]
                one, two = one[new], two[new]
                near = np.abs(colours[one] - colours[two]).max(1, initial=0) <= MOST_APART
                one, two = one[near], two[near]
                _tie(tied, one, two)
                yield images[np.stack([one, two], axis=1)]

    def _group(self, members: list[int]) -> Group:
        labels = {label for label in self._labels[members].tolist() if label >= 0}
        places = [self._place(member) for member in members]
        same_bytes = len(set(self._facts["file"][members].tolist())) == 1
        return Group(places, same_bytes, len({place.part for place in places}) > 1, len(labels) > 1)

    def _place(self, number: int) -> Place:
        return Place(0, number) if number < self._training else Place(1, number - self._training)


def _worst_first(group: Group) -> tuple[bool, bool, list[Place]]:
    return not group.leak, not group.two_labels, group.places


def _side_by_side(ordered: np.ndarray, sketches: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions of equal values, first of neighbours, then of those that lie further apart, up to _WINDOW.

    sketches: of each; only runs of equal values where these are not all equal are looked at. None: all runs.
    """
    at = np.flatnonzero(ordered[1:] == ordered[:-1])
    if sketches is not None and len(at):
        starts = np.flatnonzero(np.diff(at, prepend=-2) > 1)
        mixed = np.logical_or.reduceat(sketches[at] != sketches[at + 1], starts)
        at = at[np.repeat(mixed, np.diff(starts, append=len(at)))]
    for apart in range(1, _WINDOW + 1):
        at = at[: np.searchsorted(at, len(ordered) - apart)]
        at = at[ordered[at] == ordered[at + apart]]
        if not len(at):
            return
        yield at, at + apart


def _tie(tied: np.ndarray, one: np.ndarray, two: np.ndarray) -> None:
    """Give images that a pair ties together the same number: of most pairs, as the others cost time only."""
    if len(one):
        low, high = np.sort([tied[one], tied[two]], axis=0)
        to = np.arange(len(tied))
        np.minimum.at(to, high, low)
        while (to[to] != to).any():
            to = to[to]
        tied[:] = to[tied]


def _connected(pairs: Iterable[list[int]]) -> list[list[int]]:
    """Sorted numbers of each set that pairs tie together."""
    sets: dict[int, list[int]] = {}
    for one, other in pairs:
        joined, added = sets.setdefault(one, [one]), sets.setdefault(other, [other])
        if joined is not added:
            if len(joined) < len(added):
                joined, added = added, joined
            joined += added
            sets.update(dict.fromkeys(added, joined))
    return [sorted(members) for members in {id(members): members for members in sets.values()}.values()]
