"""What is drawn for a training image, apart from doing it: so that it can be done where that is cheapest.

Everything comes from torch's default generator on the CPU, in the order in which torchvision's v2 transforms would ask
it if they followed one another: crop, flips, rotation, colours, policy. Its seed decides what becomes of an image.
"""

from __future__ import annotations

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


class Drawn(NamedTuple):
    """What was drawn for an image."""

    crop: tuple[int, int, int, int]
    """Top, left, height and width in pixels: of the whole image; with crop=pad, of the squeezed image in its frame."""
    mirrored: bool
    flipped: bool
    """Upside down."""
    operations: list[Operation]
    """Rotation, colours and those of the policy, in their order."""


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
        mirrored = bool(hflip) and torch.rand(()).item() < hflip
        flipped = bool(vflip) and torch.rand(()).item() < vflip
        return Drawn(box, mirrored, flipped, [operation for operations in draws for operation in operations()])

    return draw


def _crop(augment: Augment, size: int) -> Callable[[int, int], tuple[int, int, int, int]]:
    if augment.crop == "random_resized":
        draw = v2.RandomResizedCrop(size, augment.scale, augment.ratio).make_params

        def resized(height: int, width: int) -> tuple[int, int, int, int]:
            box = draw([torch.empty((3, height, width), device="meta")])
            return int(box["top"]), int(box["left"]), int(box["height"]), int(box["width"])

        return resized
    if augment.crop == "pad" and augment.padding:
        offsets = 2 * augment.padding + 1
        return lambda height, width: (int(torch.randint(offsets, ())), int(torch.randint(offsets, ())), size, size)
    return lambda height, width: (0, 0, *((size, size) if augment.crop == "pad" else (height, width)))


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
        return lambda: [_choose(space, lambda: int(torch.randint(_BINS, ())))]
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
        chosen = policies[int(torch.randint(len(policies), ()))]
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
    name = names[int(torch.randint(len(names), ()))]
    return name, _magnitude(space, name, strength)


def _magnitude(space: Space, name: str, strength: Callable[[], int]) -> float:
    magnitudes, signed = space[name]
    if magnitudes is None:
        return 0.0
    magnitude = float(magnitudes[strength()])
    return -magnitude if signed and torch.rand(()) <= 0.5 else magnitude
