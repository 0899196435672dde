"""The keys of `data` and `augment`: where images come from, and what is done to them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, model_validator

from recipes.schema.fields import Count, Fraction, Group, NonNegative, Positive


class _Data(Group):
    train: str
    """Where the training images are: the source says in which form. ~ and $VARIABLES are expanded."""
    val: str | None = None
    """Where the validation images are; null: carved from the training images by `val_fraction`."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of each class's training images put aside for validation, the same for every seed of the run."""
    train_samples: Count | None = None
    """Training images the recipe was made for, to show steps before the data is seen; the data itself decides."""
    max_train: Count | None = None
    """Use only so many training images, spread evenly over the data (for a quick try)."""
    max_val: Count | None = None
    """Use only so many validation images, spread evenly over the data."""
    num_workers: Annotated[int, Field(ge=0)] | None = None
    """Decoding processes per rank; null: one a CPU core that the rank has, at most 16."""
    prefetch: Count = 2
    """Batches each worker prepares ahead."""
    last_batch: Literal["drop", "keep"] = "drop"
    """What becomes of the samples that do not fill an epoch's last batch."""
    balance: Literal["none", "oversample"] = "none"
    """oversample: draw (and augment) images of small classes again until all classes are as large as the largest."""
    repeats: Count = 1
    """Repeated augmentation: each image stands this often in a batch (or less, to fit), and 1/repeats in an epoch."""
    max_broken: Fraction = 0.01
    """Share of images that may prove unreadable (each named and replaced) before the run stops."""


class ImageFolderData(_Data):
    """One folder a class, as in train/n01440764/x.JPEG; classes are numbered in the folders' sorted order."""

    source: Literal["image_folder"]
    val_labels: str | None = None
    """For a flat validation folder (ILSVRC's): a text or CSV file with a file name and its class a line."""

    @model_validator(mode="after")
    def _validation(self) -> ImageFolderData:
        return _needs_validation(self)


class HuggingFaceData(_Data):
    """A Hugging Face data set: a folder of parquet files, one written by save_to_disk, or a name on the hub."""

    source: Literal["huggingface"]
    config: str | None = None
    """Configuration of a hub data set."""
    train_split: str = "train"
    """Split to train on."""
    val_split: str | None = "validation"
    """Split to validate on, of `val` or else of `train`; null: carved by `val_fraction`."""
    image_column: str | None = None
    """Column of images; null: the only one of type Image."""
    label_column: str | None = None
    """Column of labels; null: the only one of type ClassLabel."""


class CsvData(_Data):
    """A CSV manifest with a header and an image a row."""

    source: Literal["csv"]
    images: str | None = None
    """Folder the file names start from; null: the folder of the CSV file."""
    file_column: str | None = None
    """Column of file names; null: the first one."""
    label_column: str | None = None
    """Column of labels (any text); null: the second one."""

    @model_validator(mode="after")
    def _validation(self) -> CsvData:
        return _needs_validation(self)


class CifarData(_Data):
    """CIFAR-10 or CIFAR-100 through torchvision; `train` is the folder they are in or are downloaded to."""

    source: Literal["cifar10", "cifar100"]
    train: str = "data"
    """Folder the archive is in, or is downloaded to."""
    download: bool = True
    """Fetch the archive (170 MB) if it is not there."""


class ShapesData(_Data):
    """Drawn shapes as real JPEG files, made once into the folder `train` and then read as an image folder."""

    source: Literal["shapes"]
    train: str = "data/shapes"
    """Folder the images are drawn into."""
    per_class: Count = 200
    """Training images of each of the 10 classes; a quarter as many are drawn for validation."""
    size: Annotated[int, Field(ge=16)] = 72
    """Longer side of the drawn images in pixels; the shorter varies."""


class SyntheticData(_Data):
    """Random noise with a trace of its class, made in memory: for benchmarks and for trying out a cluster."""

    source: Literal["synthetic"]
    train: str = "synthetic"
    """Not read: the images are made in memory."""
    classes: Count = 10
    """Number of classes."""
    samples: Count = 1024
    """Training images; a quarter as many for validation."""
    size: Annotated[int, Field(ge=8)] = 224
    """Height and width in pixels."""


def _needs_validation(data: Any) -> Any:
    if data.val is None and data.val_fraction is None:
        raise ValueError("needs val (where the validation images are) or val_fraction (the share to carve)")
    if data.val is not None and data.val_fraction is not None:
        raise ValueError("has both val and val_fraction: give one, and null for the other")
    return data


Data = Annotated[
    ImageFolderData | HuggingFaceData | CsvData | CifarData | ShapesData | SyntheticData, Discriminator("source")
]


class SizeAt(Group):
    """One corner of a progressive-resizing ramp."""

    epoch: NonNegative
    """Epoch from which the size holds."""
    size: Count
    """Training image size in pixels."""


class Augment(Group):
    """From a decoded image to the network's input, for training and for evaluation."""

    crop: Literal["random_resized", "pad", "resize"] = "random_resized"
    """random_resized: Inception crop; pad: by `padding`, then a random crop (CIFAR); resize: the whole, squeezed."""
    train_size: Annotated[int, Field(ge=8)] = 224
    """Height and width of a training image in pixels."""
    val_resize: Annotated[int, Field(ge=8)] = 256
    """Shorter side of a validation image in pixels before the central crop."""
    val_size: Annotated[int, Field(ge=8)] = 224
    """Height and width of the central crop in pixels."""
    scale: tuple[Positive, Positive] = (0.08, 1.0)
    """Range of the random crop's share of the image's area."""
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Range of the random crop's width / height."""
    padding: Annotated[int, Field(ge=0)] = 4
    """Pixels of zeros around the image for crop=pad."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Resampling filter, antialiased."""
    hflip: Fraction = 0.5
    """Probability of a horizontal flip."""
    vflip: Fraction = 0.0
    """Probability of a vertical flip."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Rotate by a random angle of up to so many degrees."""
    color_jitter: NonNegative = 0.0
    """Strength of random changes of brightness, contrast and saturation."""
    policy: Literal["none", "trivial_augment_wide", "randaugment", "auto_augment"] = "none"
    """Automatic augmentation after crop and flip (torchvision's operations)."""
    randaugment_ops: Count = 2
    """Operations RandAugment applies to an image."""
    randaugment_magnitude: Annotated[float, Field(ge=0, le=10)] = 9
    """RandAugment's strength on a scale of 0 to 10."""
    randaugment_std: NonNegative = 0.0
    """Standard deviation of that strength, drawn for each operation (timm's mstd)."""
    random_erasing: Fraction = 0.0
    """Probability of blanking a rectangle after normalisation (Zhong et al. 2017)."""
    mixup: NonNegative = 0.0
    """Alpha of mixup's Beta distribution; 0: none. With cutmix too, each micro-batch draws one of the two."""
    cutmix: NonNegative = 0.0
    """Alpha of CutMix's Beta distribution; 0: none."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of red, green and blue on a scale of 0 to 1 (ImageNet's)."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Standard deviation of the same."""
    progressive: list[SizeAt] = []
    """Corners of the training size over epochs, linear in between and rounded to multiples of 32; empty: train_size."""

    @model_validator(mode="after")
    def _ranges(self) -> Augment:
        if self.val_size > self.val_resize and self.crop != "resize":
            raise ValueError(f"val_size {self.val_size} is larger than val_resize {self.val_resize} it is cropped from")
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} [{low}, {high}] runs backwards")
        epochs = [corner.epoch for corner in self.progressive]
        if epochs != sorted(set(epochs)):
            raise ValueError("progressive needs its epochs in ascending order, each once")
        return self
