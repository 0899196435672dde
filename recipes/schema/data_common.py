"""The keys of `data` that every source has."""

from __future__ import annotations

import os
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from recipes.schema.fields import Count, Fold, Fraction, Group


class CommonData(Group):
    """Keys of all sources, and what they have to agree on."""

    made_here: ClassVar[bool] = False
    """Whether the images are made by the program, so that nothing has to be there before."""
    gives_rgb: ClassVar[bool] = False
    """Whether the images are red, green and blue whatever is asked for."""
    places: ClassVar[tuple[str, ...]] = (
        "train",
        "val",
        "test",
        "train_samples",
        "num_workers",
        "prefetch",
        "cache",
        "stage",
        "max_broken",
    )
    """Keys that say where the same images are, or how they are read, not which they are."""

    own: ClassVar[tuple[str, ...]] = ()
    """Keys that it does not take over from a recipe's other source that it replaces."""

    train: str
    """Where the training images are: the source says in which form. ~ and $VARIABLES are expanded."""
    val: str | None = None
    """Where the validation images are; null: carved from the training images by `val_fraction`."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of each class's training images put aside for validation, the same for every seed of the run."""
    fold: Fold | None = None
    """As 2/5: the training images are cut into 5 parts, each class evenly and the same for every seed, and the second
    is what is validated on instead of `val`."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of each class's training images put aside before all else, the same for every seed: evaluated once, at the
    end, with the final weights."""
    train_samples: Count | None = None
    """Training images the recipe was made for, to show steps before the data is seen; the data itself decides."""
    max_train: Count | None = None
    """Use at most this many training images, spread evenly over the data (for a quick try)."""
    max_val: Count | None = None
    """Use at most this many validation images, spread evenly over the data."""
    num_workers: Annotated[int, Field(ge=0)] | None = None
    """Decoding processes per rank; null: one a CPU core that the rank has, at most 16."""
    prefetch: Count = 2
    """Batches each worker prepares ahead."""
    cache: Literal["auto", "none", "memory", "device"] = "auto"
    """memory: keep the images of a machine in its memory as they are read, decoded where all are brought to one size
    (crop=pad or resize), else as files; auto: memory for decoded ones of up to 1 GB; device: decode all at the start,
    keep them on the device (on each rank's) and crop and flip them there."""
    stage: Annotated[str, Field(min_length=1)] | None = None
    """Folder on each node's own disk, to copy files and folders to once and read them there; null: where they are."""
    decode: Literal["cpu", "region", "gpu"] = "cpu"
    """region: decode of a JPEG what is cropped (needs `resnet-launch[fast]`), to the same pixels; gpu: decode, crop and
    flip JPEGs on the GPU (nvJPEG), to pixels that differ a little."""
    pixel_max: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Value of 16-bit images that becomes 255, larger ones too (10000 for Sentinel-2's reflectances); null: 65535 of
    grey files, and bands of 16 bits are refused."""
    last_batch: Literal["drop", "keep"] = "drop"
    """What becomes of the samples that do not fill an epoch's last batch."""
    balance: Literal["none", "oversample", "sqrt", "shares"] = "none"
    """oversample: draw (and augment) images of small classes again until all classes are as large as the largest; sqrt:
    until they are in proportion to the square roots of their sizes; shares: by `class_shares`, as many as there are."""
    class_shares: dict[str, Annotated[float, Field(gt=0, le=1)]] = {}
    """With balance=shares: a class's share of an epoch, by name; the other classes split the rest by their sizes."""
    repeats: Count = 1
    """Repeated augmentation: each image stands this often in a batch (or less, to fit), and 1/repeats in an epoch."""
    max_broken: Fraction = 0.01
    """Share of images that may prove unreadable (each named and replaced) before the run stops."""

    def images_stated(self) -> int | None:
        """Training images, carved ones included, as far as the keys tell; None: only the data itself does."""
        return self.train_samples

    def classes_stated(self) -> int | None:
        """Classes, as far as the keys tell; None: only the data itself does."""
        return None

    def paths(self) -> dict[str, str | None]:
        """Files and folders that have to be there, by the name of the key."""
        return {}

    def beside_test(self) -> tuple[str, ...]:
        """Keys of images that `test` must not name again."""
        return "train", "val"

    @property
    def fold_of(self) -> tuple[int, int] | None:
        """The fold that is validated on, from 1 on, and how many there are."""
        if self.fold is None:
            return None
        number, of = map(int, self.fold.split("/"))
        return number, of

    @property
    def is_tested(self) -> bool:
        """Whether there are images that the run is tested on at its end."""
        return any(getattr(self, key, None) is not None for key in ("test", "test_split", "test_fraction"))

    @model_validator(mode="after")
    def _one_validation(self) -> Self:
        given = [key for key in ("val", "val_fraction", "fold") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"has both {given[0]} and {given[1]}: give one, and null for the other")
        return self

    @model_validator(mode="after")
    def _one_test(self) -> Self:
        given = [key for key in ("test", "test_split") if getattr(self, key, None) is not None]
        if self.test_fraction is not None and given:
            raise ValueError(f"has both {given[0]} and test_fraction: give one, and null for the other")
        test = getattr(self, "test", None)
        for key in self.beside_test():
            if test and (path := getattr(self, key)) and same_place(test, path):
                raise ValueError(f"test={test} is what is {_USED[key]} on (data.{key}): give images of their own")
        if (self.val_fraction or 0) + (self.test_fraction or 0) >= 1:
            raise ValueError("val_fraction and test_fraction leave nothing to train on")
        return self

    @model_validator(mode="after")
    def _shares_of_classes(self) -> Self:
        if bool(self.class_shares) != (self.balance == "shares"):
            raise ValueError("balance=shares and class_shares={name: share} need each other: give both or neither")
        if sum(self.class_shares.values()) > 1 + 1e-9:
            raise ValueError(f"class_shares add up to {sum(self.class_shares.values()):g}, which is more than 1")
        return self

    @model_validator(mode="after")
    def _files_to_stage(self) -> Self:
        if self.stage is not None and not any(self.paths().values()):
            source = getattr(self, "source", None)
            hub = f", and {self.train} is a name on the hub (a path begins with / . ~ or $)"
            told = f"stage has no effect with source={source}: it copies files and folders"
            raise ValueError(told + (hub if source == "huggingface" else ""))
        return self


_USED = {"train": "trained", "val": "validated"}


def same_place(path: str, other: str) -> bool:
    """Whether two paths are of one place, as far as the words tell."""
    ours, theirs = (os.path.normpath(os.path.expanduser(os.path.expandvars(place))) for place in (path, other))
    return ours == theirs
