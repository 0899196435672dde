"""The operations of `resnet.data.operations` on one image, for a data worker: uint8 arrays (H, W, 3).

`Rotation` takes any number of channels.

Bytes are NumPy's, which converts, compares and copies them several times as fast as torch does; float32 is torch's,
whose arithmetic on slices is faster. None writes to the image that it is given.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import as_strided
from PIL import Image, ImageOps
from torch import Tensor

_GREY = np.array([[0.2989], [0.587], [0.114]], dtype=np.float32)


def _identity(image: np.ndarray, _: float) -> np.ndarray:
    return image


def _brightness(image: np.ndarray, magnitude: float) -> np.ndarray:
    return _levels(_pixels(image).mul_(1 + magnitude))


def _color(image: np.ndarray, magnitude: float) -> np.ndarray:
    pixels, grey, ratio = _pixels(image), np.empty(image.shape, np.float32), 1 + magnitude
    # Channel by channel: a broadcast over three values is several times as slow.
    grey[..., 0] = grey[..., 1] = grey[..., 2] = _grey(pixels)
    return _levels(pixels.mul_(ratio).add_(torch.from_numpy(grey), alpha=1 - ratio))


def _contrast(image: np.ndarray, magnitude: float) -> np.ndarray:
    pixels, ratio = _pixels(image), 1 + magnitude
    # A row's sum, of whole numbers, is exact in float32.
    mean = torch.from_numpy(_grey(pixels)).sum(1).sum(dtype=torch.float64).item() / pixels[..., 0].numel()
    return _levels(pixels.mul_(ratio).add_(mean * (1 - ratio)))


def _sharpness(image: np.ndarray, magnitude: float) -> np.ndarray:
    height, width = image.shape[:2]
    if min(height, width) <= 2:
        return image
    # Neighbours in a row are 3 values apart. Those at its ends meet the next row: they are put right at last.
    values, row = image.ravel().astype(np.uint16), 3 * width
    columns = values[: -2 * row] + values[row:-row]
    columns += values[2 * row :]
    blurred = columns[:-6] + columns[3:-3]
    blurred += columns[6:]
    # The kernel is 1, and 5 in the middle. A thirteenth of a whole number is never half way between two.
    blurred += 4 * values[row + 3 : -row - 3]
    blurred += 6
    blurred //= 13
    pixels = _pixels(image).view(-1)
    inner = pixels[row + 3 : -row - 3]
    inner.add_(torch.from_numpy(blurred.view(np.int16)).float().sub_(inner), alpha=1 - (1 + magnitude))
    sharpened = _levels(pixels).reshape(image.shape)
    sharpened[:, :: width - 1] = image[:, :: width - 1]
    return sharpened


def _posterize(image: np.ndarray, magnitude: float) -> np.ndarray:
    return image & np.uint8(256 - (1 << (8 - int(magnitude))))


def _solarize(image: np.ndarray, magnitude: float) -> np.ndarray:
    # torchvision compares with a float32.
    bright = image >= math.ceil(np.float32(255 * magnitude))
    return image ^ -bright.view(np.uint8)


def _autocontrast(image: np.ndarray, _: float) -> np.ndarray:
    height, width = image.shape[:2]
    rows = image.reshape(height, -1)
    low, high = (extreme(0).reshape(width, 3) for extreme in (rows.min, rows.max))
    low, high = low.min(0), high.max(0)
    scale = np.where(low == high, np.float32(1), (high - low) * np.float32(1 / 255))
    low = np.where(low == high, np.uint8(0), low)
    above = torch.from_numpy(rows - np.tile(low, width)).float()
    return _truncated(above.div_(torch.from_numpy(np.tile(scale, width)))).reshape(image.shape)


def _equalize(image: np.ndarray, _: float) -> np.ndarray:
    return np.array(ImageOps.equalize(Image.fromarray(image)))


def _invert(image: np.ndarray, _: float) -> np.ndarray:
    return ~image


def _shear_x(image: np.ndarray, magnitude: float) -> np.ndarray:
    height, width = image.shape[:2]
    shift = magnitude * (np.arange(height) + 0.5)
    whole = np.floor(shift)
    share = torch.from_numpy((shift - whole).astype(np.float32)).unsqueeze(1)
    starts = whole.clip(-width - 1, width).astype(np.int64)
    left, right = max(0, -starts.min()), max(0, starts.max()) + 1
    framed = np.zeros((height, left + width + right, 3), np.uint8)
    framed[:, left : left + width] = image
    # Of each row the part that begins at its start: one pixel more than the image is wide.
    parts = as_strided(framed, (height, left + right, 3 * width + 3), (framed.strides[0], 3, 1))
    found = _pixels(parts[np.arange(height), starts + left])
    return _rounded(torch.lerp(found[:, :-3], found[:, 3:], share)).reshape(image.shape)


def _shear_y(image: np.ndarray, magnitude: float) -> np.ndarray:
    return _transposed(_shear_x(_transposed(image), magnitude))


def _translate_x(image: np.ndarray, magnitude: float) -> np.ndarray:
    return _translate_y(image.swapaxes(0, 1), magnitude).swapaxes(0, 1)


def _translate_y(image: np.ndarray, magnitude: float) -> np.ndarray:
    moved, by = np.zeros_like(image), int(magnitude)
    if by >= 0:
        moved[by:] = image[: max(len(image) - by, 0)]
    else:
        moved[:by] = image[-by:]
    return moved


def _rotate(image: np.ndarray, magnitude: float) -> np.ndarray:
    return _interleaved(_sampled(_planes(image), _turned(image, magnitude)))


def _rotation(image: np.ndarray, magnitude: float) -> np.ndarray:
    points = _turned(image, magnitude)
    inside = _sampled(torch.ones((1, 1, *image.shape[:2])), points)
    return _interleaved(_sampled(_planes(image), points).mul_(inside))


def _turned(image: np.ndarray, degrees: float) -> Tensor:
    """Where each pixel of a turned image comes from: (1, H, W, 2), as `grid_sample` takes it."""
    height, width = image.shape[:2]
    turn = cmath.rect(1, math.radians(degrees))
    # The unit is half of the image. A complex number holds both coordinates of a point.
    columns, rows = (
        torch.from_numpy(_centred(size) * complex(step.real * 2 / width, step.imag * 2 / height)).to(torch.complex64)
        for size, step in ((width, turn), (height, 1j * turn))
    )
    return torch.view_as_real(columns + rows.unsqueeze(1)).unsqueeze(0)


@cache
def _centred(size: int) -> np.ndarray:
    return np.arange(size) - (size - 1) / 2


def _sampled(planes: Tensor, points: Tensor) -> Tensor:
    return F.grid_sample(planes, points, align_corners=False)


def _pixels(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).float()


def _planes(image: np.ndarray) -> Tensor:
    return _pixels(image).permute(2, 0, 1).unsqueeze(0)


def _interleaved(planes: Tensor) -> np.ndarray:
    """float32 (1, C, H, W) to an image."""
    image = np.empty((*planes.shape[2:], planes.shape[1]), np.uint8)
    for channel, plane in enumerate(_rounded(planes[0])):
        image[..., channel] = plane
    return image


def _transposed(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    turned = np.empty((width, height, 3), np.uint8)
    for channel in range(3):
        turned[..., channel] = image[..., channel].T
    return turned


def _grey(pixels: Tensor) -> np.ndarray:
    """Whole levels of grey, float32 (H, W), of (H, W, 3)."""
    grey = pixels.view(-1, 3).numpy() @ _GREY
    return np.floor(grey, out=grey).reshape(pixels.shape[:2])


def _levels(values: Tensor) -> np.ndarray:
    return _truncated(values.clamp_(0, 255))


def _rounded(values: Tensor) -> np.ndarray:
    return _truncated(values.round_())


def _truncated(values: Tensor) -> np.ndarray:
    return values.numpy().astype(np.uint8)


BY_NAME: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "Identity": _identity,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Rotate": _rotate,
    "Brightness": _brightness,
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Rotation": _rotation,
}
