"""From a decoded image to the size the network takes: random for training, fixed for evaluation.

All on uint8 tensors (3, H, W), by torchvision's v2 transforms. They draw from torch's default generator on the CPU and
from nothing else: its seed decides what becomes of an image. Normalisation happens on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from recipes.schema.augment import Augment

Transform = Callable[[torch.Tensor], torch.Tensor]
Note = Callable[[str, Any], None]
"""Is told what was drawn for an image: by which transform, and its parameters as torchvision names them."""

_BINS = 31
_LONGEST_SIDE = 32


def train_transform(augment: Augment, size: int, note: Note | None = None) -> Transform:
    """A function from uint8 (3, H, W) to uint8 (3, size, size): crop, flips, rotation, colours, policy, in this order
    (torchvision's references crop, flip, then apply the policy).

    note: is told of crop, hflip and vflip (where it is done), rotation, color_jitter, and each operation of the policy.
    """
    steps = [_train_crop(augment, size, note)]
    if augment.hflip:
        steps.append(_noted(v2.RandomHorizontalFlip(augment.hflip), "hflip", note))
    if augment.vflip:
        steps.append(_noted(v2.RandomVerticalFlip(augment.vflip), "vflip", note))
    if augment.rotation:
        rotation = v2.RandomRotation(augment.rotation, InterpolationMode.BILINEAR)  # pyright: ignore[reportArgumentType]
        steps.append(_noted(rotation, "rotation", note))
    if augment.color_jitter:
        jitter = v2.ColorJitter(augment.color_jitter, augment.color_jitter, augment.color_jitter)
        steps.append(_noted(jitter, "color_jitter", note))
    if augment.policy != "none":
        steps.append(_policy(augment, note))
    return _in_turn(steps)


def _noted(transform: v2.Transform, name: str, note: Note | None) -> v2.Transform:
    """The transform, which tells its parameters each time that it draws them."""
    if note is not None:
        draw = transform.make_params

        def drawn(flat_inputs: list[Any]) -> dict[str, Any]:
            parameters = draw(flat_inputs)
            note(name, parameters)
            return parameters

        transform.make_params = drawn
    return transform


def _noted_policy(policy: v2.Transform, note: Note | None) -> v2.Transform:
    """The policy, which tells each operation and its magnitude."""
    apply = getattr(policy, "_apply_image_or_video_transform", None)
    if note is not None and apply is not None:

        def applied(image: Any, name: str, magnitude: float, **others: Any) -> Any:
            note("policy", {"operation": name, "magnitude": magnitude})
            return apply(image, name, magnitude, **others)

        policy._apply_image_or_video_transform = applied  # pyright: ignore[reportArgumentType]
    return policy


def eval_transform(augment: Augment) -> Transform:
    """A function from uint8 (3, H, W) to uint8 (3, val_size, val_size), the same for the same image.

    random_resized: shorter side to val_resize, then the central val_size x val_size; pad, resize: the whole image,
    squeezed where it has not that size already.
    """
    if augment.crop != "random_resized":
        return squeeze(augment.val_size, augment)
    resize = v2.Resize(augment.val_resize, InterpolationMode(augment.interpolation), antialias=True)
    return _in_turn([_without_far_ends, resize, v2.CenterCrop(augment.val_size)])


def _train_crop(augment: Augment, size: int, note: Note | None) -> Transform:
    if augment.crop == "random_resized":
        return _random_resized_crop(augment, size, note)
    if augment.crop == "pad":
        crop = _noted(v2.RandomCrop(size, padding=augment.padding), "crop", note)
        return _in_turn([squeeze(size, augment), crop])
    return squeeze(size, augment)


def _random_resized_crop(augment: Augment, size: int, note: Note | None) -> Transform:
    draw = _noted(v2.RandomResizedCrop(size, augment.scale, augment.ratio), "crop", note).make_params

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


def _policy(augment: Augment, note: Note | None) -> Transform:
    if augment.policy == "randaugment":
        return _randaugment(augment.randaugment_ops, augment.randaugment_magnitude, augment.randaugment_std, note)
    if augment.policy == "trivial_augment_wide":
        return _noted_policy(v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR), note)
    assert augment.policy == "auto_augment"
    return _noted_policy(v2.AutoAugment(interpolation=InterpolationMode.BILINEAR), note)


def _randaugment(ops: int, magnitude: float, std: float, note: Note | None) -> Transform:
    """RandAugment (Cubuk et al. 2019, arXiv:1909.13719) with a magnitude of 0 to 10, drawn anew for each operation."""
    by_bin = [
        _noted_policy(v2.RandAugment(1, strength, _BINS, InterpolationMode.BILINEAR), note) for strength in range(_BINS)
    ]

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
