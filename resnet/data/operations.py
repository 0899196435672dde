"""The operations of automatic augmentation policies, of colour jitter and of rotation, on uint8 images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from resnet.data.draws import Operation

NAMES = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert", "Rotation"),
)


class Operations(NamedTuple):
    """Those of a batch, one after the other: of N images K each, as many as the image that has most."""

    codes: torch.Tensor
    """int8 (N, K): places in NAMES; 0, Identity, where an image has fewer."""
    magnitudes: torch.Tensor
    """float64 (N, K)."""

    @classmethod
    def of(cls, drawn: list[list[Operation]]) -> Operations:
        most = max(map(len, drawn))
        padded = [[*found, *[("Identity", 0.0)] * (most - len(found))] for found in drawn]
        codes = torch.tensor([[NAMES.index(name) for name, _ in found] for found in padded], dtype=torch.int8)
        magnitudes = torch.tensor([[magnitude for _, magnitude in found] for found in padded], dtype=torch.float64)
        return cls(codes, magnitudes)


def apply_to_one(image: torch.Tensor, operations: list[Operation]) -> torch.Tensor:
    """What operations make of an image uint8 (3, H, W)."""
    for name, magnitude in operations:
        if name == "Rotation":
            image = functional.rotate(image, magnitude, InterpolationMode.BILINEAR, fill=[0.0])
        else:
            policy = v2.RandAugment(interpolation=InterpolationMode.BILINEAR)
            image = policy._apply_image_or_video_transform(  # pyright: ignore[reportAssignmentType]
                image, name, magnitude, InterpolationMode.BILINEAR, {torch.Tensor: None}
            )
    return image


def apply_to_batch(images: torch.Tensor, operations: Operations) -> torch.Tensor:
    """What the operations make of images uint8 (N, 3, H, W)."""
    made = []
    for image, codes, magnitudes in zip(images, *operations, strict=True):
        names = [NAMES[code] for code in codes.tolist()]
        made.append(apply_to_one(image, list(zip(names, magnitudes.tolist(), strict=True))))
    return torch.stack(made)
