"""The keys of `augment`: from a decoded image to the network's input."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recipes.schema.fields import Count, Fraction, Group, NonNegative, Positive


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
    mean: Annotated[tuple[float, ...], Field(min_length=1)] = (0.485, 0.456, 0.406)
    """Mean of each channel on a scale of 0 to 1 (ImageNet's red, green and blue; their luma with in_channels=1)."""
    std: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.229, 0.224, 0.225)
    """Standard deviation of the same."""
    progressive: list[SizeAt] = []
    """Corners of the training size over epochs, linear in between and rounded to multiples of 32; empty: train_size."""

    @property
    def channels(self) -> int:
        """Of an image: `model.in_channels`."""
        return len(self.mean)

    def beyond_cache(self) -> list[str]:
        """What is not done to images that are kept on the device."""
        beyond = [f"augment.crop={self.crop}"] if self.crop == "random_resized" else []
        return [*beyond, "augment.progressive"] if self.progressive else beyond

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
