"""From a decoded image to the size the network takes: random for training, fixed for evaluation.

All on uint8 tensors (3, H, W), by torchvision's v2 transforms. They draw from torch's default generator on the CPU and
from nothing else: its seed decides what becomes of an image. Normalisation happens on the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from recipes.schema.augment import Augment

Transform = Callable[[torch.Tensor], torch.Tensor]

_BINS = 31
_LONGEST_SIDE = 32


def train_transform(augment: Augment, size: int) -> Transform:
    """A function from uint8 (3, H, W) to uint8 (3, size, size): crop, flips, rotation, colours, policy, in this order
    (torchvision's references crop, flip, then apply the policy)."""
    steps = [_train_crop(augment, size)]
    if augment.hflip:
        steps.append(v2.RandomHorizontalFlip(augment.hflip))
    if augment.vflip:
        steps.append(v2.RandomVerticalFlip(augment.vflip))
    if augment.rotation:
        steps.append(v2.RandomRotation(augment.rotation, InterpolationMode.BILINEAR))  # pyright: ignore[reportArgumentType]
    if augment.color_jitter:
        steps.append(v2.ColorJitter(augment.color_jitter, augment.color_jitter, augment.color_jitter))
    if augment.policy != "none":
        steps.append(_policy(augment))
    return _in_turn(steps)


def eval_transform(augment: Augment) -> Transform:
    """A function from uint8 (3, H, W) to uint8 (3, val_size, val_size), the same for the same image.

    random_resized: shorter side to val_resize, then the central val_size x val_size; pad, resize: the whole image,
    squeezed where it has not that size already.
    """
    if augment.crop != "random_resized":
        return squeeze(augment.val_size, augment)
    resize = v2.Resize(augment.val_resize, InterpolationMode(augment.interpolation), antialias=True)
    return _in_turn([_without_far_ends, resize, v2.CenterCrop(augment.val_size)])


def _train_crop(augment: Augment, size: int) -> Transform:
    if augment.crop == "random_resized":
        return _random_resized_crop(augment, size)
    if augment.crop == "pad":
        return _in_turn([squeeze(size, augment), v2.RandomCrop(size, padding=augment.padding)])
    return squeeze(size, augment)


def _random_resized_crop(augment: Augment, size: int) -> Transform:
    draw = v2.RandomResizedCrop(size, augment.scale, augment.ratio).make_params

    def apply(image: torch.Tensor) -> torch.Tensor:
        box = draw([image])
        top, left, height, width = (box[side] for side in ("top", "left", "height", "width"))
        # Copied together, what is cut out is resized a sixth faster, and stays in the order that batches have.
        cut = image[:, top : top + height, left : left + width].permute(1, 2, 0).contiguous().permute(2, 0, 1)
        return functional.resize(cut, [size, size], InterpolationMode(augment.interpolation), antialias=True)

    return apply


def squeeze(size: int, augment: Augment) -> Transform:
    """A function that gives any image the size of size x size pixels, whatever its shape was."""
    return v2.Resize((size, size), InterpolationMode(augment.interpolation), antialias=True)


def _without_far_ends(image: torch.Tensor) -> torch.Tensor:
    """Cut an extremely long image to its middle, the crop's surroundings: resized whole it could fill the memory."""
    height, width = image.shape[-2:]
    longest = _LONGEST_SIDE * min(height, width)
    if max(height, width) <= longest:
        return image
    return functional.center_crop(image, [min(height, longest), min(width, longest)])


def _policy(augment: Augment) -> Transform:
    if augment.policy == "randaugment":
        return _randaugment(augment.randaugment_ops, augment.randaugment_magnitude, augment.randaugment_std)
    if augment.policy == "trivial_augment_wide":
        return v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)
    assert augment.policy == "auto_augment"
    return v2.AutoAugment(interpolation=InterpolationMode.BILINEAR)


def _randaugment(ops: int, magnitude: float, std: float) -> Transform:
    """RandAugment (Cubuk et al. 2019, arXiv:1909.13719) with a magnitude of 0 to 10, drawn anew for each operation."""
    by_bin = [v2.RandAugment(1, strength, _BINS, InterpolationMode.BILINEAR) for strength in range(_BINS)]

    def apply(image: torch.Tensor) -> torch.Tensor:
        for _ in range(ops):
            drawn = magnitude + std * torch.randn(()).item() if std else magnitude
            image = by_bin[round(min(max(drawn, 0.0), 10.0) / 10 * (_BINS - 1))](image)
        return image

    return apply


def _in_turn(steps: list[Transform]) -> Transform:
    def apply(image: torch.Tensor) -> torch.Tensor:
        for step in steps:
            image = step(image)
        return image

    return apply
