"""What networks are evaluated on: the recipe's validation images or others, with labels as the networks count classes.

Whose lists and labels: ImageNet-ReaL (Beyer et al. 2020, arXiv:2006.07159), ImageNet-V2 (Recht et al. 2019,
arXiv:1902.10811), ImageNet-A (Hendrycks et al. 2019, arXiv:1907.07174), ImageNet-R (Hendrycks et al. 2020,
arXiv:2006.16241).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from recipes.text import listed, plural
from resnet.build import build_data, build_splits
from resnet.data import imagenet
from resnet.data.sources.given import Given, open_given, unmatched_text
from resnet.data.sources.registry import Subset
from resnet.data.sources.source import Source
from resnet.tools.trained import UNKNOWN, Trained

_ILSVRC = re.compile(r"ILSVRC2012_val_(\d{8})\b")


class DataOptions(NamedTuple):
    """What a user asks for beside the recipe."""

    data: tuple[str, ...] = ()
    """Files, folders, patterns or lists of labelled images; empty: the recipe's validation images."""
    images: Path | None = None
    """Folder that the names in a list start from; None: the list's."""
    columns: tuple[str | None, str | None] = (None, None)
    """Of a CSV file: those of file names and of labels."""
    real: Path | None = None
    """ReaL's real.json."""
    only_present: bool = False
    """Let the networks answer the classes only that the data holds."""
    split: Literal["val", "test"] = "val"
    """Of the recipe's images, where no others are given."""
    known_only: bool | None = None
    """Leave out images of classes that the networks do not have. None: the user cannot ask for it."""


THE_RECIPES = DataOptions()
"""The validation images of each network's own recipe."""


class EvalData(NamedTuple):
    """Labelled images, and what counts as right."""

    source: Source
    """Its labels are indices into `classes`."""
    classes: list[str]
    """Of the network, in the order of its outputs."""
    own: bool
    """Whether they are the validation images that the recipe names."""
    training_images: int | None = None
    among: np.ndarray | None = None
    """Indices of the classes that may be answered; None: all."""
    accepted: np.ndarray | None = None
    """int64 (n, most): all the classes that are right for an image, filled up with -1; None: its label alone."""
    notes: tuple[str, ...] = ()
    """How things were matched, a line each."""


def open_eval_data(
    trained: Trained, outputs: int, options: DataOptions, opened: tuple[Source, Source] | None = None
) -> EvalData:
    """The images that a network is to be evaluated on. outputs: of the network.

    opened: the recipe's images for training and validation, where they are open already.

    Raises ValueError where there are none, their classes are not the network's, or the weights name other numbers of
    classes than they have outputs.
    """
    if trained.classes and len(trained.classes) != outputs:
        named = f"{len(trained.classes)} are named"
        raise ValueError(f"{trained.weights} is for {plural(outputs, 'class')}, and {named}")
    found = _given(trained, outputs, options) if options.data else _recipes(trained, outputs, options, opened)
    notes, labels = [*found.notes], found.source.labels
    if options.real is not None:
        found = _by_real(found, options.real, notes)
    present = np.unique(labels)
    if len(present) < outputs and (options.data or options.only_present):
        may = "only these are answered" if options.only_present else f"the network may answer any of the {outputs}"
        notes.append(f"classes: {len(present)} of the network's {outputs}; {may}")
    return found._replace(among=present if options.only_present else None, notes=tuple(notes))


def _recipes(trained: Trained, outputs: int, options: DataOptions, opened: tuple[Source, Source] | None) -> EvalData:
    """The validation or test images of the recipe."""
    if UNKNOWN in (trained.recipe.data.train, trained.recipe.data.val):
        raise ValueError(f"{trained.weights} does not say which data it is of: give --data PATH, or add recipe=NAME")
    if options.split == "test" and not trained.recipe.data.is_tested:
        raise ValueError(f"{trained.name} has no test images: give data.test_fraction, data.test or --data PATH")
    if options.split == "test":
        train, _, images = build_splits(trained.recipe)
        assert images is not None
    else:
        train, images = opened or build_data(trained.recipe)
    classes = trained.classes or train.classes
    if len(train.classes) != outputs and not trained.classes:
        raise ValueError(f"{trained.weights} is for {plural(outputs, 'class')}, and the data has {len(train.classes)}")
    source, notes = _by_name(images, classes)
    return EvalData(source, classes, options.split == "val", len(train), notes=notes)


def _by_name(source: Source, classes: list[str]) -> tuple[Source, tuple[str, ...]]:
    """A source whose classes are another list than the network's, with its labels as the network counts."""
    if source.classes == classes:
        return source, ()
    number = {name: index for index, name in enumerate(classes)}
    unknown = [name for name in source.classes if name not in number]
    if not unknown:
        labels = np.array([number[name] for name in source.classes], dtype=np.int64)[source.labels]
        return Relabelled(source, labels, classes), ()
    if len(unknown) == len(classes) == len(source.classes):
        few = f"({', '.join(classes[:3])} ...) than the data's ({', '.join(source.classes[:3])} ...)"
        return source, (f"the network's classes have other names {few}: right only if their order is the same",)
    raise ValueError(f"classes of the data that the network does not have: {listed(unknown)}")


class Relabelled(Subset):
    """All images of a source, with other labels."""

    def __init__(self, source: Source, labels: np.ndarray, classes: list[str]) -> None:
        super().__init__(source, np.arange(len(source)))
        self.labels, self.classes = labels, classes


def _given(trained: Trained, outputs: int, options: DataOptions) -> EvalData:
    """The images of --data, their classes matched to the network's by name, or by number."""
    classes, notes = trained.classes, []
    if not classes:
        classes, notes = _unnamed_classes(trained, outputs, options)
    given = _open(trained, classes, options)
    unmatched = given.unmatched
    known = np.flatnonzero(given.labels >= 0)
    if unmatched and not (options.known_only and len(known)):
        advice = ". --known-only leaves them out" if len(known) and options.known_only is not None else ""
        raise ValueError(unmatched_text(given) + advice)
    if without := len(given) - len(known) - sum(unmatched.values()):
        some = "all" if without == len(given) else f"{without:,} of"
        raise ValueError(
            f"{some} {plural(len(given), 'image')} of --data are without a label: give a folder for each class, or a "
            "list with a column of labels (--label-column)"
        )
    if unmatched:
        left_out = plural(sum(unmatched.values()), "image"), plural(len(unmatched), "class")
        notes.append(f"left out: {left_out[0]} of {left_out[1]} unknown to the network")
    source = given if len(known) == len(given) else Subset(given, known)
    return EvalData(source, classes, False, notes=(*notes, *given.notes))


def _open(trained: Trained, classes: list[str] | None, options: DataOptions) -> Given:
    return open_given(options.data, classes, options.columns, options.images, trained.recipe.data)


def _unnamed_classes(trained: Trained, outputs: int, options: DataOptions) -> tuple[list[str], list[str]]:
    """Names for the outputs of a network whose weights name none: numbers, ImageNet's, the data's or the recipe's."""
    there = _open(trained, None, options).classes
    numbers = [str(number) for number in range(outputs)]
    if set(there) <= set(numbers):
        return numbers, ["the classes of the data are numbers, taken as the network's outputs from 0"]
    wnids = imagenet.wnids() if outputs == imagenet.CLASSES else []
    shared = len(set(there) & set(wnids))
    # All of them, or most: what else lies in the folder is not the network's. Other data can share a few by chance.
    if shared and (shared == len(there) or (len(there) != outputs and shared > len(there) / 2)):
        return wnids, ["1,000 outputs and no names: ImageNet-1k's are taken, WordNet ids in their order"]
    if len(there) == outputs:
        return there, ["the weights name no classes: those of the data are taken, in their order"]
    unnamed = f"{trained.weights} names none of its {outputs} classes, the data has {len(there)}"
    advice = "name its folders by the numbers of the outputs, from 0, or set data.train to images of all the classes"
    try:
        classes = build_data(trained.recipe)[0].classes
    except ValueError as error:
        raise ValueError(f"{unnamed}, and those of the recipe cannot be read: {error}. Or {advice}") from error
    if len(classes) != outputs:
        raise ValueError(f"{unnamed}, and the recipe's data {len(classes)}: {advice}")
    return classes, []


def _by_real(found: EvalData, file: Path, notes: list[str]) -> EvalData:
    """The images that ReaL has labels for, each right where the answer is one of these."""
    lists, source = _read_real(file, len(found.classes)), found.source
    kept, answers = [], []
    for index in range(len(source)):
        number = _ILSVRC.search(source.describe(index))
        if number is None:
            raise ValueError(
                f"--real: {source.describe(index)} is not named as ILSVRC2012_val_00000001.JPEG, so that it cannot be "
                f"found in {file}"
            )
        if not 1 <= int(number[1]) <= len(lists):
            raise ValueError(f"--real: {file} has {plural(len(lists), 'list')}, and none for {source.describe(index)}")
        if right := lists[int(number[1]) - 1]:
            kept.append(index)
            answers.append(right)
    if not kept:
        raise ValueError(f"--real: {file} has no label for any of the {plural(len(source), 'image')}")
    most = max(map(len, answers))
    accepted = np.array([[*right, *[-1] * (most - len(right))] for right in answers], dtype=np.int64)
    notes.append(
        f"ReaL: {len(kept):,} of {plural(len(source), 'image')} with labels, {np.mean(accepted >= 0) * most:.2f} each"
    )
    return found._replace(source=Subset(source, np.array(kept)), accepted=accepted)


def _read_real(file: Path, classes: int) -> list[list[int]]:
    """Class indices of each validation image, in the order of their names."""
    try:
        lists = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--real: cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"--real: {file} is not JSON ({error}): give ReaL's real.json") from error
    whole = isinstance(lists, list) and all(isinstance(one, list) for one in lists)
    if not whole or not all(type(number) is int and number >= 0 for one in lists for number in one):
        raise ValueError(f"--real: {file} is no list of lists of class indices, as ReaL's real.json is")
    if (largest := max((max(one) for one in lists if one), default=0)) >= classes:
        raise ValueError(f"--real: {file} has the class {largest}, and the network has {classes}")
    return lists
