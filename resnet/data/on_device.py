"""What is done to a micro-batch on the device: normalisation, random erasing, mixup, CutMix, soft targets.

Nothing here makes the host wait for the device; random numbers are drawn on the host.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import RandomErasing

from recipes.schema.augment import Augment

_NOTHING = (0, 0, 0, 0)
_STREAM = 1  # Keeps these numbers apart from others drawn with the same seed and step.


class Mix(NamedTuple):
    """How each sample of a micro-batch is mixed with the one before it."""

    lam: float
    """The sample's own share of its target (and, in mixup, of its pixels)."""
    box: tuple[int, int, int, int] | None
    """CutMix: top, left, height and width in pixels of what the other image fills; None: mixup."""


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """uint8 (N, C, H, W) to `dtype`, each channel less its mean and divided by its std (both on a scale of 0 to 1)."""
    shift, scale = _shift_and_scale(tuple(mean), tuple(std), images.device)
    if images.device.type == "cpu" and images.is_contiguous(memory_format=torch.channels_last):
        # Whole rows: broadcast over three values, or of mixed types, arithmetic on a CPU takes seven times as long.
        width = images.shape[3]
        rows = images.permute(0, 2, 3, 1).flatten(2).float()
        rows.mul_(scale.flatten().repeat(width)).add_(shift.flatten().repeat(width))
        return rows.to(dtype).unflatten(2, (width, images.shape[1])).permute(0, 3, 1, 2)
    # One pass over the memory, in which float32 is only what is computed in.
    return torch.addcmul(shift, images, scale, out=torch.empty_like(images, dtype=dtype))


def checksum(images: Tensor) -> Tensor:
    """A number that tells images uint8 (N, C, H, W) from others: int64 (), of one pass over the memory.

    Of each image the words of four bytes, in NHWC order, times 1, 3, 5, ...; added up modulo 2**64. So any byte that
    changes, a flip and a shift change it, and neither the images' order nor how they are batched does.
    """
    pixels = images.permute(0, 2, 3, 1).flatten(1)
    if rest := pixels.shape[1] % 4:
        pixels = F.pad(pixels, (0, 4 - rest))
    words = pixels.contiguous().view(torch.int32).sum(0)
    return (words * _odd_numbers(len(words), images.device)).sum()


@cache
def _odd_numbers(count: int, device: torch.device) -> Tensor:
    return 2 * torch.arange(count, device=device) + 1


@cache
def _shift_and_scale(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """What to add to a channel of 0 to 255, after it was multiplied by the second."""
    shift, scale = torch.tensor(mean).div(torch.tensor(std)).neg(), torch.tensor(std).mul(255).reciprocal()
    return shift.view(1, -1, 1, 1).to(device), scale.view(1, -1, 1, 1).to(device)


def draw_erasing(p: float, size: int) -> tuple[int, int, int, int]:
    """With probability p a rectangle of a size x size image to blank, else a height of 0: top, left, height, width.

    Zhong et al. 2017 (arXiv:1708.04896) with torchvision's defaults; drawn from torch's default generator.
    """
    if torch.rand(1).item() >= p:
        return _NOTHING
    image = torch.empty((3, size, size), device="meta")
    top, left, height, width, _ = RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0.0])
    # torchvision's sign that no rectangle fitted; one that fits is smaller than the image.
    return _NOTHING if height == size else (top, left, height, width)


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """Set a rectangle of each of the normalised images (N, C, H, W) to 0, the mean, in place.

    boxes: integers (N, 4): top, left, height and width in pixels; a height of 0 leaves the image as it is.
    """
    top, left, height, width = (edge[:, None] for edge in boxes.unbind(1))
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    in_rows = (rows >= top) & (rows < top + height)
    in_columns = (columns >= left) & (columns < left + width)
    mask = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return images.masked_fill_(mask, 0)


def draw_mix(augment: Augment, seed: int, step: int, slot: int, height: int, width: int) -> Mix | None:
    """Mixup or CutMix for a micro-batch of height x width images, as a function of seed, step and slot alone.

    slot: the micro-batch's place in the step, counted over all devices. None: the recipe mixes nothing.
    Mixup: Zhang et al. 2017 (arXiv:1710.09412); CutMix: Yun et al. 2019 (arXiv:1905.04899), its box drawn as in
    torchvision's references; with both, each is drawn half of the time.
    """
    if not augment.mixup and not augment.cutmix:
        return None
    random = np.random.Generator(np.random.Philox(key=_words(seed, step), counter=_words(0, 0, slot, _STREAM)))
    cuts = random.random() < 0.5 if augment.mixup and augment.cutmix else bool(augment.cutmix)
    alpha = augment.cutmix if cuts else augment.mixup
    lam = float(random.beta(alpha, alpha))
    if not cuts:
        return Mix(lam, None)
    center_y, center_x = int(random.integers(height)), int(random.integers(width))
    half = 0.5 * math.sqrt(1 - lam)
    half_height, half_width = int(half * height), int(half * width)
    top, bottom = max(center_y - half_height, 0), min(center_y + half_height, height)
    left, right = max(center_x - half_width, 0), min(center_x + half_width, width)
    box = (top, left, bottom - top, right - left)
    return Mix(1 - box[2] * box[3] / (height * width), box)


def _words(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.uint64)


def soft_targets(labels: Tensor, num_classes: int, label_smoothing: float = 0.0) -> Tensor:
    """Labels (N,) as probabilities (N, num_classes), `label_smoothing` of each spread evenly over all classes."""
    spread = label_smoothing / num_classes
    targets = torch.full((len(labels), num_classes), spread, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1 - label_smoothing + spread)


def mix(images: Tensor, targets: Tensor, mixed: Mix) -> tuple[Tensor, Tensor]:
    """Mix each sample with the one before it in the micro-batch, the first with the last.

    images: float (N, C, H, W); targets: probabilities (N, num_classes).
    """
    if mixed.box is None:
        images = torch.lerp(_rolled(images), images, mixed.lam)
    else:
        top, left, height, width = mixed.box
        images = images.clone()
        region = images[:, :, top : top + height, left : left + width]
        region.copy_(_rolled(region))
    return images, torch.lerp(_rolled(targets), targets, mixed.lam)


def _rolled(batch: Tensor) -> Tensor:
    # Not batch.roll, which gives up channels_last on a GPU.
    return torch.cat((batch[-1:], batch[:-1]))
