"""The keys of `data`, a class a source, and what a source's keys tell before its images are seen."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, model_validator

from recipes.schema.data_common import CommonData, same_place
from recipes.schema.fields import Count
from recipes.schema.plugins import Plugin


class ImageFolderData(CommonData):
    """One folder a class, as in train/n01440764/x.JPEG; classes are numbered in the folders' sorted order."""

    source: Literal["image_folder"]
    places: ClassVar[tuple[str, ...]] = (*CommonData.places, "index", "val_labels")
    test: str | None = None
    """Where the test images are, as `val`: evaluated once, at the end, with the final weights."""
    val_labels: str | None = None
    """For a flat validation folder (ILSVRC's): a text or CSV file with a file name and its class a line."""
    index: Literal["auto", "rebuild"] = "auto"
    """auto: list the images only where a folder has changed since they were last listed (RUN_ROOT/.index holds what was
    found); rebuild: list them anew."""

    @model_validator(mode="after")
    def _validation(self) -> ImageFolderData:
        if self.val_labels is not None and self.val is None:
            raise ValueError("val_labels has no effect without val")
        return _needs_validation(self)

    def paths(self) -> dict[str, str | None]:
        return {"train": self.train, "val": self.val, "test": self.test, "val_labels": self.val_labels}


class HuggingFaceData(CommonData):
    """A Hugging Face data set: a folder of parquet files, one written by save_to_disk, or a name on the hub."""

    source: Literal["huggingface"]
    places: ClassVar[tuple[str, ...]] = (
        *(*CommonData.places, "config", "train_split", "val_split", "test_split"),
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
        if self.test_split and any(self.test_split == split and same_place(place, of) for of, split in used):
            raise ValueError(f"test_split={self.test_split} is what is trained or validated on: give another one")
        return self

    def beside_test(self) -> tuple[str, ...]:
        # Which split of a folder it is, is told by another key.
        return ("train", "val") if self.test_split is None else ()

    def paths(self) -> dict[str, str | None]:
        # Anything else may be a name on the hub.
        return {key: path for key in ("train", "val", "test") if (path := getattr(self, key)) and path[0] in "/.~$"}


class CsvData(CommonData):
    """A CSV manifest with a header and an image a row."""

    source: Literal["csv"]
    places: ClassVar[tuple[str, ...]] = (*CommonData.places, "index", "images", "file_column", "label_column")
    images: str | None = None
    """Folder the file names start from; null: the folder of the CSV file."""
    test: str | None = None
    """The CSV file of the test images: evaluated once, at the end, with the final weights."""
    file_column: str | None = None
    """Column of file names; null: the first one that is not the labels'."""
    label_column: str | None = None
    """Column of labels (any text); null: the one called label or labels, else the one behind the file names."""
    index: Literal["auto", "rebuild"] = "auto"
    """auto: look for the images only where the CSV file or a folder has changed since they were last looked for
    (RUN_ROOT/.index holds what was found); rebuild: look for them anew."""

    @model_validator(mode="after")
    def _validation(self) -> CsvData:
        return _needs_validation(self)

    def paths(self) -> dict[str, str | None]:
        return {"train": self.train, "val": self.val, "test": self.test, "images": self.images}


class ShardsData(CommonData):
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


class CifarData(CommonData):
    """CIFAR-10 or CIFAR-100 through torchvision; `train` is the folder they are in or are downloaded to."""

    gives_rgb: ClassVar[bool] = True

    source: Literal["cifar10", "cifar100"]
    places: ClassVar[tuple[str, ...]] = (*CommonData.places, "download")
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


class ShapesData(CommonData):
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


class SyntheticData(CommonData):
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


class PluginData(CommonData):
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
