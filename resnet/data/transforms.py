"""From a decoded image to the size the network takes: as it was drawn for training, fixed for evaluation.

All on uint8 tensors (3, H, W), on any device, by torchvision's v2 kernels: to be led to them by the type of the image
takes longer than to crop a small one. Normalisation happens on the device, later.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from recipes.schema.augment import Augment
from resnet.data.draws import Drawn

Transform = Callable[[torch.Tensor], torch.Tensor]
Crop = Callable[[torch.Tensor, Drawn], torch.Tensor]

_LONGEST_SIDE = 32


def eval_transform(augment: Augment) -> Transform:
    """A function from uint8 (3, H, W) to uint8 (3, val_size, val_size), the same for the same image.

    random_resized: shorter side to val_resize, then the central val_size x val_size; pad, resize: the whole image,
    squeezed where it has not that size already.
    """
    if augment.crop != "random_resized":
        return squeeze(augment.val_size, augment)
    how, side = InterpolationMode(augment.interpolation), [augment.val_size] * 2

    def apply(image: torch.Tensor) -> torch.Tensor:
        resized = functional.resize_image(_without_far_ends(image), [augment.val_resize], how, antialias=True)
        return functional.center_crop_image(resized, side)

    return apply


def train_crop(augment: Augment, size: int) -> Crop:
    """A function that cuts from uint8 (3, H, W) what was drawn and flips it: uint8 (3, size, size)."""
    crop = _random_resized(augment, size) if augment.crop == "random_resized" else _whole(augment, size)

    def apply(image: torch.Tensor, drawn: Drawn) -> torch.Tensor:
        image = crop(image, drawn)
        edges = [-1] * drawn.mirrored + [-2] * drawn.flipped
        return image.flip(edges) if edges else image

    return apply


def _random_resized(augment: Augment, size: int) -> Crop:
    how = InterpolationMode(augment.interpolation)

    def apply(image: torch.Tensor, drawn: Drawn) -> torch.Tensor:
        top, left, height, width = drawn.crop
        # Copied together, what is cut out is resized a sixth faster, and stays in the order that batches have.
        cut = image[:, top : top + height, left : left + width].permute(1, 2, 0).contiguous().permute(2, 0, 1)
        return functional.resize_image(cut, [size, size], how, antialias=True)

    return apply


def _whole(augment: Augment, size: int) -> Crop:
    squeezed, padding = squeeze(size, augment), augment.padding if augment.crop == "pad" else 0

    def apply(image: torch.Tensor, drawn: Drawn) -> torch.Tensor:
        image = squeezed(image)
        if not padding:
            return image
        return functional.crop_image(image, drawn.crop[0] - padding, drawn.crop[1] - padding, size, size)

    return apply


def squeeze(size: int, augment: Augment) -> Transform:
    """A function that gives any image the size of size x size pixels, whatever its shape was."""
    how = InterpolationMode(augment.interpolation)
    return lambda image: functional.resize_image(image, [size, size], how, antialias=True)


def _without_far_ends(image: torch.Tensor) -> torch.Tensor:
    """Cut an extremely long image to its middle, the crop's surroundings: resized whole it could fill the memory."""
    height, width = image.shape[-2:]
    longest = _LONGEST_SIDE * min(height, width)
    if max(height, width) <= longest:
        return image
    return functional.center_crop(image, [min(height, longest), min(width, longest)])
