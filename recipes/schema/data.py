"""The keys of `data`, a class a source, and what a source's keys tell before its images are seen."""

from __future__ import annotations

import os
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, model_validator
from typing_extensions import Self

from recipes.schema.fields import Count, Fold, Fraction, Group
from recipes.schema.plugins import Plugin


class _Data(Group):
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
            if test and (path := getattr(self, key)) and _same_place(test, path):
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


def _same_place(path: str, other: str) -> bool:
    """As far as the words tell."""
    ours, theirs = (os.path.normpath(os.path.expanduser(os.path.expandvars(place))) for place in (path, other))
    return ours == theirs


class ImageFolderData(_Data):
    """One folder a class, as in train/n01440764/x.JPEG; classes are numbered in the folders' sorted order."""

    source: Literal["image_folder"]
    places: ClassVar[tuple[str, ...]] = (*_Data.places, "val_labels")
    test: str | None = None
    """Where the test images are, as `val`: evaluated once, at the end, with the final weights."""
    val_labels: str | None = None
    """For a flat validation folder (ILSVRC's): a text or CSV file with a file name and its class a line."""

    @model_validator(mode="after")
    def _validation(self) -> ImageFolderData:
        if self.val_labels is not None and self.val is None:
            raise ValueError("val_labels has no effect without val")
        return _needs_validation(self)

    def paths(self) -> dict[str, str | None]:
        return {"train": self.train, "val": self.val, "test": self.test, "val_labels": self.val_labels}


class HuggingFaceData(_Data):
    """A Hugging Face data set: a folder of parquet files, one written by save_to_disk, or a name on the hub."""

    source: Literal["huggingface"]
    places: ClassVar[tuple[str, ...]] = (
        *(*_Data.places, "config", "train_split", "val_split", "test_split"),
        *("image_column", "label_column"),
    )
    config: str | None = None
    """Configuration of a hub data set."""
    train_split: str = "train"
    """Split to train on."""
    val_split: str | None = "validation"
    """Split to validate on, of `val` or else of `train`; null: carved by `val_fraction`."""
    test: str | None = None
    """Where the test images are, as `val`: evaluated once, at the end, with the final weights."""
    test_split: str | None = None
    """Split to test on, of `test` or else of `train`."""
    image_column: str | None = None
    """Column of images; null: the only one of type Image, else the one called image or img."""
    label_column: str | None = None
    """Column of labels; null: the only one of type ClassLabel, else the one called label or labels."""

    @model_validator(mode="after")
    def _validation(self) -> HuggingFaceData:
        carved = next((key for key in ("val_fraction", "fold") if getattr(self, key) is not None), None)
        if carved and (self.val is not None or self.val_split is not None):
            raise ValueError(f"{carved} carves from the training split: it needs val=null and val_split=null")
        if self.val is None and self.val_split is None and not carved:
            raise ValueError("val_split=null needs val_fraction (the share of training images to carve)")
        used = [(self.train, self.train_split), (self.val or self.train, self.val_split)]
        place = self.test or self.train
        if self.test_split and any(self.test_split == split and _same_place(place, of) for of, split in used):
            raise ValueError(f"test_split={self.test_split} is what is trained or validated on: give another one")
        return self

    def beside_test(self) -> tuple[str, ...]:
        # Which split of a folder it is, is told by another key.
        return ("train", "val") if self.test_split is None else ()

    def paths(self) -> dict[str, str | None]:
        # Anything else may be a name on the hub.
        return {key: path for key in ("train", "val", "test") if (path := getattr(self, key)) and path[0] in "/.~$"}


class CsvData(_Data):
    """A CSV manifest with a header and an image a row."""

    source: Literal["csv"]
    places: ClassVar[tuple[str, ...]] = (*_Data.places, "images", "file_column", "label_column")
    images: str | None = None
    """Folder the file names start from; null: the folder of the CSV file."""
    test: str | None = None
    """The CSV file of the test images: evaluated once, at the end, with the final weights."""
    file_column: str | None = None
    """Column of file names; null: the first one that is not the labels'."""
    label_column: str | None = None
    """Column of labels (any text); null: the one called label or labels, else the one behind the file names."""

    @model_validator(mode="after")
    def _validation(self) -> CsvData:
        return _needs_validation(self)

    def paths(self) -> dict[str, str | None]:
        return {"train": self.train, "val": self.val, "test": self.test, "images": self.images}


class ShardsData(_Data):
    """What `resnet prepare` wrote: a few large files of images, and an index of where each lies."""

    own: ClassVar[tuple[str, ...]] = ("val", "val_fraction", "fold", "test", "test_fraction")

    source: Literal["shards"]
    val: str | None = None
    """Another folder of shards to validate on; null: the validation images that lie with those of training."""

    test: str | None = None
    """Another folder of shards, whose validation images are tested on once, at the end, with the final weights."""

    def beside_test(self) -> tuple[str, ...]:
        # Those that lie with the training images are not validated on where `val` is given.
        return ("val",) if self.val else ("train",)

    @model_validator(mode="after")
    def _validation(self) -> ShardsData:
        for key in ("val_fraction", "fold", "test_fraction"):
            if getattr(self, key) is not None:
                raise ValueError(f"{key} has no effect with source=shards, which hold validation images of their own")
        return self

    def paths(self) -> dict[str, str | None]:
        return {"train": self.train, "val": self.val, "test": self.test}


class CifarData(_Data):
    """CIFAR-10 or CIFAR-100 through torchvision; `train` is the folder they are in or are downloaded to."""

    gives_rgb: ClassVar[bool] = True

    source: Literal["cifar10", "cifar100"]
    places: ClassVar[tuple[str, ...]] = (*_Data.places, "download")
    train: str = "data"
    """Folder the archive is in, or is downloaded to."""
    download: bool = True
    """Fetch the archive (170 MB) if it is not there."""
    test_split: Literal["test"] | None = None
    """test: the official test images are evaluated once, at the end, with the final weights; they are not validated on,
    which takes `val_fraction` or `fold`."""

    @model_validator(mode="after")
    def _validation(self) -> CifarData:
        if self.test_split and self.val_fraction is None and self.fold is None:
            raise ValueError("test_split=test leaves nothing to validate on: give val_fraction or fold")
        return self

    def classes_stated(self) -> int:
        return 10 if self.source == "cifar10" else 100


_OF_FILES = ("train", "val", "train_samples", "pixel_max", "stage")
"""Keys of images that are read, which made ones do not take over."""


class ShapesData(_Data):
    """Drawn shapes as real JPEG files, made once into the folder `train` and then read as an image folder."""

    own: ClassVar[tuple[str, ...]] = _OF_FILES
    made_here: ClassVar[bool] = True
    gives_rgb: ClassVar[bool] = True

    source: Literal["shapes"]
    train: str = "data/shapes"
    """Folder the images are drawn into."""
    per_class: Count = 200
    """Training images of each of the 10 classes; a quarter as many are drawn for validation."""
    size: Annotated[int, Field(ge=16)] = 72
    """Longer side of the drawn images in pixels; the shorter varies."""

    @model_validator(mode="after")
    def _validation(self) -> ShapesData:
        return _has_its_own_validation(self)

    def images_stated(self) -> int:
        return 10 * self.per_class

    def classes_stated(self) -> int:
        return 10


class SyntheticData(_Data):
    """Random noise with a trace of its class, made in memory: for benchmarks and for trying out a cluster."""

    own: ClassVar[tuple[str, ...]] = _OF_FILES
    made_here: ClassVar[bool] = True
    gives_rgb: ClassVar[bool] = True

    source: Literal["synthetic"]
    train: str = "synthetic"
    """Not read: the images are made in memory."""
    classes: Count = 10
    """Number of classes."""
    samples: Count = 1024
    """Training images; a quarter as many for validation."""
    size: Annotated[int, Field(ge=8)] = 224
    """Height and width in pixels."""

    @model_validator(mode="after")
    def _validation(self) -> SyntheticData:
        return _has_its_own_validation(self)

    def images_stated(self) -> int:
        return self.samples

    def classes_stated(self) -> int:
        return self.classes


class PluginData(_Data):
    """Images of a source of your own: see docs/plugins.md."""

    own: ClassVar[tuple[str, ...]] = ("train", "val", "train_samples", "stage")

    source: Literal["plugin"]
    plugin: Plugin
    """Class or function (train: bool, **args) -> a source: labels (or targets), classes, len(), read and describe."""
    train: str = "plugin"
    """Not read: the source knows where its images are."""

    @model_validator(mode="after")
    def _validation(self) -> PluginData:
        return _has_its_own_validation(self)


def _needs_validation(data: Any) -> Any:
    if data.val is None and data.val_fraction is None and data.fold is None:
        raise ValueError("needs val (where the validation images are) or val_fraction (the share to carve)")
    return data


def _has_its_own_validation(data: Any) -> Any:
    if data.val is not None:
        raise ValueError(
            f"val has no effect with source={data.source}, which has validation images of its own: leave it "
            "out, or set data.val=null"
        )
    return data


Data = Annotated[
    ImageFolderData | HuggingFaceData | CsvData | ShardsData | CifarData | ShapesData | SyntheticData | PluginData,
    Discriminator("source"),
]
