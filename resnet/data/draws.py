"""What is drawn for a training image, apart from doing it: so that it can be done where that is cheapest.

Everything comes from torch's default generator on the CPU, in the order in which torchvision's v2 transforms would ask
it if they followed one another: crop, flips, rotation, colours, policy. Its seed decides what becomes of an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torchvision.transforms import v2

from recipes.schema.augment import Augment

_BINS = 31
"""Steps of a magnitude in RandAugment and TrivialAugment."""

Operation = tuple[str, float]
"""A name in `operations.NAMES`, and the magnitude."""
Space = dict[str, tuple[list[float] | None, bool]]
"""By operation: its magnitudes (None: it has none), and whether their sign is drawn."""


Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""


class Drawn(NamedTuple):
    """What was drawn for an image."""

    crop: Box
    """Top, left, height and width in pixels: of the whole image; with crop=pad, of the squeezed image in its frame."""
    mirrored: bool
    flipped: bool
    """Upside down."""
    operations: list[Operation]
    """Rotation, colours and those of the policy, in their order."""


# What is drawn into memory that is there takes a third of the time.
_NUMBER, _WHOLE = torch.empty(()), torch.empty((), dtype=torch.int64)

Draw = Callable[[int, int], Drawn]
"""From the height and width of an image to what is drawn for it."""


def drawing(augment: Augment, size: int) -> Draw:
    """A function that draws for images which are to become size x size pixels."""
    crop = _crop(augment, size)
    # As torchvision's comparison of float32 tensors.
    hflip, vflip = (float(np.float32(probability)) for probability in (augment.hflip, augment.vflip))
    draws = [draw for draw in (_rotation(augment), _colours(augment), _policy(augment, size)) if draw]

    def draw(height: int, width: int) -> Drawn:
        box = crop(height, width)
        mirrored = bool(hflip) and _uniform() < hflip
        flipped = bool(vflip) and _uniform() < vflip
        return Drawn(box, mirrored, flipped, [operation for operations in draws for operation in operations()])

    return draw


def _uniform() -> float:
    """As torch.rand."""
    return _NUMBER.uniform_().item()


def _below(count: int) -> int:
    """As torch.randint."""
    return int(_WHOLE.random_(count).item())


def _crop(augment: Augment, size: int) -> Callable[[int, int], Box]:
    if augment.crop == "random_resized":
        return _inception_crop(augment.scale, augment.ratio)
    if augment.crop == "pad" and augment.padding:
        offsets = 2 * augment.padding + 1
        return lambda height, width: (_below(offsets), _below(offsets), size, size)
    return lambda height, width: (0, 0, *((size, size) if augment.crop == "pad" else (height, width)))


def _inception_crop(scale: tuple[float, float], ratio: tuple[float, float]) -> Callable[[int, int], Box]:
    """As torchvision's RandomResizedCrop, which takes four times as long about it (Szegedy et al. 2014)."""
    log_ratio = torch.log(torch.tensor(ratio)).tolist()

    def crop(height: int, width: int) -> Box:
        for _ in range(10):
            area = height * width * _NUMBER.uniform_(*scale).item()
            aspect = _NUMBER.uniform_(*log_ratio).exp_().item()
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top = _below(height - h + 1)
                return top, _below(width - w + 1), h, w
        # The largest of a fitting shape, from the middle.
        w, h = width, height
        if width / height < ratio[0]:
            h = round(width / ratio[0])
        elif width / height > ratio[1]:
            w = round(height * ratio[1])
        return (height - h) // 2, (width - w) // 2, h, w

    return crop


def _rotation(augment: Augment) -> Callable[[], list[Operation]] | None:
    degrees = augment.rotation
    return (lambda: [("Rotation", torch.empty(1).uniform_(-degrees, degrees).item())]) if degrees else None


def _colours(augment: Augment) -> Callable[[], list[Operation]] | None:
    """As torchvision's ColorJitter: the same strength for all three, in a random order."""
    if not augment.color_jitter:
        return None
    draw = v2.ColorJitter(*[augment.color_jitter] * 3).make_params

    def drawn() -> list[Operation]:
        found = draw([])
        factors = [found[f"{name}_factor"] for name in ("brightness", "contrast", "saturation")]
        # The fourth is the hue, which is left as it is.
        return [
            (("Brightness", "Contrast", "Color")[which], factors[which] - 1)
            for which in found["fn_idx"].tolist()
            if which < 3
        ]

    return drawn


def _policy(augment: Augment, size: int) -> Callable[[], list[Operation]] | None:
    if augment.policy == "randaugment":
        return _randaugment(augment, size)
    if augment.policy == "trivial_augment_wide":
        space = _space(v2.TrivialAugmentWide, _BINS, size)
        return lambda: [_choose(space, lambda: _below(_BINS))]
    return _auto_augment(size) if augment.policy == "auto_augment" else None


def _randaugment(augment: Augment, size: int) -> Callable[[], list[Operation]]:
    """RandAugment (Cubuk et al. 2019, arXiv:1909.13719) with a magnitude of 0 to 10, drawn anew for each operation."""
    magnitude, std = augment.randaugment_magnitude, augment.randaugment_std
    space = _space(v2.RandAugment, _BINS, size)

    def operation() -> Operation:
        drawn = magnitude + std * torch.randn(()).item() if std else magnitude
        strength = round(min(max(drawn, 0.0), 10.0) / 10 * (_BINS - 1))
        return _choose(space, lambda: strength)

    return lambda: [operation() for _ in range(augment.randaugment_ops)]


def _auto_augment(size: int) -> Callable[[], list[Operation]]:
    """AutoAugment's policy for ImageNet (Cubuk et al. 2018, arXiv:1805.09501)."""
    made = v2.AutoAugment()
    policies, space = made._policies, _space(v2.AutoAugment, 10, size)

    def drawn() -> list[Operation]:
        chosen = policies[_below(len(policies))]
        return [
            (name, _magnitude(space, name, lambda at=strength: at or 0))
            for name, probability, strength in chosen
            if torch.rand(()) <= probability
        ]

    return drawn


def _space(policy: type, bins: int, size: int) -> Space:
    """The operations of a policy of torchvision's, with their magnitudes for an image of size x size pixels."""
    space = policy._AUGMENTATION_SPACE  # pyright: ignore[reportAttributeAccessIssue]
    made = {name: (magnitudes(bins, size, size), signed) for name, (magnitudes, signed) in space.items()}
    return {name: (None if found is None else found.tolist(), signed) for name, (found, signed) in made.items()}


def _choose(space: Space, strength: Callable[[], int]) -> Operation:
    names = list(space)
    name = names[_below(len(names))]
    return name, _magnitude(space, name, strength)


def _magnitude(space: Space, name: str, strength: Callable[[], int]) -> float:
    magnitudes, signed = space[name]
    if magnitudes is None:
        return 0.0
    magnitude = float(magnitudes[strength()])
    return -magnitude if signed and _uniform() <= 0.5 else magnitude
