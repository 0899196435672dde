"""The operations of `resnet.data.operations` on batches, for a GPU, which the host never waits for.

Images are rows: contiguous uint8 (N, H, W, 3), the order of memory in which they arrive. Magnitudes are float64 (N,)
on the same device. Every kernel is deterministic.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Line = tuple[Tensor, Tensor, Tensor]
"""Of each image (N,) a, b and c of a coordinate a x + b y + c, in pixels from the centre."""


def _identity(rows: Tensor, _: Tensor) -> Tensor:
    return rows


def _brightness(rows: Tensor, magnitudes: Tensor) -> Tensor:
    return _levels(rows.float().mul_(_each(1 + magnitudes)))


def _color(rows: Tensor, magnitudes: Tensor) -> Tensor:
    ratio = 1 + magnitudes
    return _levels(rows.float().mul_(_each(ratio)).add_(_grey(rows).mul_(_each(1 - ratio))))


def _contrast(rows: Tensor, magnitudes: Tensor) -> Tensor:
    # Of whole numbers in double precision, which is exact: the same in whatever order they are added.
    mean, ratio = _grey(rows).mean((1, 2, 3), dtype=torch.float64), 1 + magnitudes
    return _levels(rows.float().mul_(_each(ratio)).add_(_each(mean * (1 - ratio))))


def _sharpness(rows: Tensor, magnitudes: Tensor) -> Tensor:
    if min(rows.shape[1:3]) <= 2:
        return rows
    pixels = rows.float()
    inner = pixels[:, 1:-1, 1:-1]
    columns = pixels[:, :-2] + pixels[:, 1:-1]
    columns += pixels[:, 2:]
    blurred = columns[:, :, :-2] + columns[:, :, 1:-1]
    blurred += columns[:, :, 2:]
    # The kernel is 1, and 5 in the middle.
    blurred.add_(inner, alpha=4).div_(13).round_()
    inner.add_(blurred.sub_(inner).mul_(_each(1 - (1 + magnitudes))))
    return _levels(pixels)


def _posterize(rows: Tensor, magnitudes: Tensor) -> Tensor:
    bits = magnitudes.int()
    dropped = torch.ones_like(bits) << (8 - bits)
    return rows & (256 - dropped).to(torch.uint8).view(-1, 1, 1, 1)


def _solarize(rows: Tensor, magnitudes: Tensor) -> Tensor:
    return torch.where(rows >= _each(255 * magnitudes), ~rows, rows)


def _autocontrast(rows: Tensor, _: Tensor) -> Tensor:
    low, high = (extreme(rows, (1, 2), keepdim=True).float() for extreme in (torch.amin, torch.amax))
    level = low == high
    scale = (high - low).mul_(1 / 255).masked_fill_(level, 1)
    return _levels(rows.float().sub_(low.masked_fill_(level, 0)).div_(scale))


def _equalize(rows: Tensor, _: Tensor) -> Tensor:
    count, height, width = rows.shape[:3]
    # A place of its own for each level of each channel of each image.
    first = torch.arange(count * 3, dtype=torch.int32, device=rows.device).mul_(256).view(-1, 1, 1, 3)
    places = rows.int().add_(first).flatten()
    counts = torch.zeros(count * 3 * 256, dtype=torch.int32, device=rows.device)
    counts.scatter_add_(0, places.long(), counts.new_ones(1).expand_as(places))
    return _equalizing(counts.view(-1, 256), height * width).flatten().index_select(0, places).view_as(rows)


def _equalizing(counts: Tensor, pixels: int) -> Tensor:
    """What becomes of each level: uint8 (C, 256), of how often it occurs among `pixels`; rounded as in Pillow."""
    below = counts.cumsum(1)
    highest = counts.gather(1, below.argmax(1, keepdim=True))
    step = (pixels - highest).div_(255, rounding_mode="floor")
    table = below.sub_(counts).add_(step // 2).div_(step.clamp(min=1), rounding_mode="floor").clamp_(max=255)
    return torch.where(step > 0, table, torch.arange(256, device=counts.device)).to(torch.uint8)


def _invert(rows: Tensor, _: Tensor) -> Tensor:
    return ~rows


def _shear_x(rows: Tensor, magnitudes: Tensor) -> Tensor:
    zero, one = _zero_and_one(magnitudes)
    return _rounded(_sampled(rows, (one, magnitudes, magnitudes * (rows.shape[1] / 2)), (zero, one, zero)))


def _shear_y(rows: Tensor, magnitudes: Tensor) -> Tensor:
    zero, one = _zero_and_one(magnitudes)
    return _rounded(_sampled(rows, (one, zero, zero), (magnitudes, one, magnitudes * (rows.shape[2] / 2))))


def _translate_x(rows: Tensor, magnitudes: Tensor) -> Tensor:
    zero, one = _zero_and_one(magnitudes)
    return _rounded(_sampled(rows, (one, zero, -magnitudes.trunc()), (zero, one, zero)))


def _translate_y(rows: Tensor, magnitudes: Tensor) -> Tensor:
    zero, one = _zero_and_one(magnitudes)
    return _rounded(_sampled(rows, (one, zero, zero), (zero, one, -magnitudes.trunc())))


def _rotate(rows: Tensor, magnitudes: Tensor) -> Tensor:
    return _rounded(_sampled(rows, *_turn(magnitudes)))


def _rotation(rows: Tensor, magnitudes: Tensor) -> Tensor:
    inside = _sampled(torch.ones_like(rows[..., :1]), *_turn(magnitudes))
    return _rounded(_sampled(rows, *_turn(magnitudes)).mul_(inside))


def _turn(degrees: Tensor) -> tuple[Line, Line]:
    angle, zero = degrees.deg2rad(), torch.zeros_like(degrees)
    return (angle.cos(), -angle.sin(), zero), (angle.sin(), angle.cos(), zero)


def _zero_and_one(like: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(like), torch.ones_like(like)


def _sampled(rows: Tensor, x: Line, y: Line) -> Tensor:
    """Each pixel from the point x, y between its four neighbours, black outside: float32 (N, C, H, W)."""
    height, width = rows.shape[1:3]
    # The unit of grid_sample is half of the image. A complex number holds both coordinates of a point.
    by_column, by_row, shift = (
        torch.complex(of_x * (2 / width), of_y * (2 / height)).view(-1, 1, 1) for of_x, of_y in zip(x, y, strict=True)
    )
    from_columns = by_column * _centred(width, rows.device) + shift
    from_rows = by_row * _centred(height, rows.device).unsqueeze(1)
    points = torch.view_as_real(from_columns.to(torch.complex64) + from_rows.to(torch.complex64))
    return F.grid_sample(rows.permute(0, 3, 1, 2).float(), points, align_corners=False)


def _centred(size: int, device: torch.device) -> Tensor:
    return torch.arange(size, dtype=torch.float64, device=device) - (size - 1) / 2


def _each(values: Tensor) -> Tensor:
    return values.float().view(-1, 1, 1, 1)


def _grey(rows: Tensor) -> Tensor:
    """Whole levels of grey, float32 (N, H, W, 1)."""
    red, green, blue = rows.split(1, dim=3)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def _levels(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).to(torch.uint8)


def _rounded(sampled: Tensor) -> Tensor:
    return sampled.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


BY_NAME: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
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
