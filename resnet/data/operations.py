"""What policies, colour jitter and rotation do to images: on batches of uint8, each image with a magnitude of its own.

Names and magnitudes are those of torchvision's v2 policies, bilinear and filled with black: `Brightness` of 0.3 is
`adjust_brightness(image, 1.3)` (so a factor of colour jitter less 1 is a magnitude of `Brightness`, `Contrast` or
`Color`), `Rotate` is `rotate(image, angle)`. Pixels equal torchvision's kernels to a level of 255.

One set of functions for a data worker, which calls them with one image, and for a GPU, which they never make the host
wait for. Within, images are rows: contiguous (N, H, W, 3), the order of memory that decoders give.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Operation = Callable[[Tensor, Tensor], Tensor]

_GREY = (0.2989, 0.587, 0.114)
_AT_ONCE = 64  # Images of a batch that an operation takes together: bounds the memory for what lies in between.


def _identity(rows: Tensor, _: Tensor) -> Tensor:
    return rows


def _brightness(rows: Tensor, magnitudes: Tensor) -> Tensor:
    return _to_levels(rows.float().mul_(_each(1 + magnitudes)))


def _color(rows: Tensor, magnitudes: Tensor) -> Tensor:
    planes = _planes(rows).float()
    grey = _grey(planes).mul_(_each(-magnitudes))
    return _rows(_to_levels(planes.mul_(_each(1 + magnitudes)).add_(grey)))


def _contrast(rows: Tensor, magnitudes: Tensor) -> Tensor:
    # Sums of whole numbers, and in double precision exact: the same in whatever order they are added.
    total = _grey(_planes(rows).float()).sum(3).double().sum((1, 2))
    mean = total / (rows.shape[1] * rows.shape[2])
    return _to_levels(rows.float().mul_(_each(1 + magnitudes)).add_(_each(mean.float() * -magnitudes)))


def _sharpness(rows: Tensor, magnitudes: Tensor) -> Tensor:
    if min(rows.shape[1:3]) <= 2:
        return rows
    pixels = rows.flatten(2).float()
    inner = pixels[:, 1:-1, 3:-3]
    three = pixels[:, :-2] + pixels[:, 1:-1]
    three += pixels[:, 2:]
    blurred = three[:, :, :-6] + three[:, :, 3:-3]
    blurred += three[:, :, 6:]
    # The kernel is 1 everywhere and 5 in the middle.
    blurred.add_(inner, alpha=4).mul_(1 / 13).round_()
    inner.add_(blurred.sub_(inner).mul_(_each(-magnitudes, 3)))
    return _to_levels(pixels).view(rows.shape)


def _posterize(rows: Tensor, magnitudes: Tensor) -> Tensor:
    dropped = 8 - magnitudes.int()
    return rows & _each(256 - (1 << dropped), dtype=torch.uint8)


def _solarize(rows: Tensor, magnitudes: Tensor) -> Tensor:
    threshold = _each(255 * magnitudes)
    return rows ^ (rows >= threshold).view(torch.uint8).neg_()


def _autocontrast(rows: Tensor, _: Tensor) -> Tensor:
    pixels = rows.flatten(2)
    low, high = (extreme(pixels, 1).view(-1, rows.shape[2], 3) for extreme in (torch.amin, torch.amax))
    low, high = low.amin(1).float(), high.amax(1).float()
    flat = low == high
    scale = torch.where(flat, 1, (high - low).mul_(1 / 255))
    low = torch.where(flat, 0, low)
    width = rows.shape[2]
    return _to_levels(pixels.float().sub_(_every(low, width)).div_(_every(scale, width))).view(rows.shape)


def _equalize(rows: Tensor, _: Tensor) -> Tensor:
    counts = _histograms(rows)
    below = counts.cumsum(2)
    # As in Pillow, the pixels of the highest level that occurs are not counted in the step.
    highest = counts.gather(2, below.argmax(2, keepdim=True))
    step = (rows.shape[1] * rows.shape[2] - highest).div_(255, rounding_mode="floor")
    table = (below - counts + step // 2).div_(step.clamp(min=1), rounding_mode="floor").clamp_(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=rows.device)).to(torch.uint8)
    return table.flatten().index_select(0, _with_channel(rows).flatten()).view(rows.shape)


def _invert(rows: Tensor, _: Tensor) -> Tensor:
    return ~rows


def _shear_x(rows: Tensor, magnitudes: Tensor) -> Tensor:
    one, zero = torch.ones_like(magnitudes), torch.zeros_like(magnitudes)
    return _sampled(rows, (one, magnitudes, magnitudes * (rows.shape[1] / 2)), (zero, one, zero))


def _shear_y(rows: Tensor, magnitudes: Tensor) -> Tensor:
    one, zero = torch.ones_like(magnitudes), torch.zeros_like(magnitudes)
    return _sampled(rows, (one, zero, zero), (magnitudes, one, magnitudes * (rows.shape[2] / 2)))


def _translate_x(rows: Tensor, magnitudes: Tensor) -> Tensor:
    one, zero = torch.ones_like(magnitudes), torch.zeros_like(magnitudes)
    return _sampled(rows, (one, zero, -magnitudes.trunc()), (zero, one, zero))


def _translate_y(rows: Tensor, magnitudes: Tensor) -> Tensor:
    one, zero = torch.ones_like(magnitudes), torch.zeros_like(magnitudes)
    return _sampled(rows, (one, zero, zero), (zero, one, -magnitudes.trunc()))


def _rotate(rows: Tensor, magnitudes: Tensor) -> Tensor:
    angle = magnitudes.deg2rad()
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _sampled(rows, (cos, -sin, zero), (sin, cos, zero))


def _sampled(rows: Tensor, across: tuple[Tensor, ...], down: tuple[Tensor, ...]) -> Tensor:
    """Each pixel from where `across` and `down` say, between its four neighbours; black outside.

    across, down: each (N,) a, b, c of the column and the row a x + b y + c; in pixels from the image's centre.
    """
    height, width = rows.shape[1:3]
    # grid_sample's unit is half of the image. A complex number holds the two coordinates of a point.
    by_x, by_y, shift = (
        torch.complex(column * (2 / width), row * (2 / height)).view(-1, 1, 1)
        for column, row in zip(across, down, strict=True)
    )
    x, y = (_centred(size, rows.device) for size in (width, height))
    points = (by_x * x + shift).to(torch.complex64) + (by_y * y.unsqueeze(1)).to(torch.complex64)
    images = rows.permute(0, 3, 1, 2).float()
    sampled = F.grid_sample(images, torch.view_as_real(points), align_corners=False)
    return _truncated(sampled.round_().permute(0, 2, 3, 1)).contiguous()


def _centred(size: int, device: torch.device) -> Tensor:
    return torch.arange(size, dtype=torch.float64, device=device) - (size - 1) / 2


def _each(values: Tensor, dims: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    """One value an image (N,), to be broadcast over tensors of so many dimensions."""
    return values.to(dtype).view(-1, *[1] * (dims - 1))


def _every(values: Tensor, width: int) -> Tensor:
    """One value a channel (N, 3), to be broadcast over (N, H, W * 3): quicker on a CPU than over (N, H, W, 3)."""
    return values.repeat(1, width).unsqueeze(1)


def _grey(planes: Tensor) -> Tensor:
    """Whole levels of grey, float32 (N, 1, H, W), of (N, 3, H, W)."""
    red, green, blue = planes.split(1, dim=1)
    return red.mul(_GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2]).floor_()


def _to_levels(values: Tensor) -> Tensor:
    return _truncated(values.clamp_(0, 255))


def _truncated(values: Tensor) -> Tensor:
    if values.is_cuda:
        return values.to(torch.uint8)
    # NumPy's conversion is vectorised and takes a fifth of the time.
    return torch.from_numpy(values.numpy().astype(np.uint8))


def _planes(rows: Tensor) -> Tensor:
    """(N, H, W, 3) to contiguous (N, 3, H, W)."""
    if rows.is_cuda:
        return rows.permute(0, 3, 1, 2).contiguous()
    return torch.from_numpy(np.ascontiguousarray(rows.numpy().transpose(0, 3, 1, 2)))


def _rows(planes: Tensor) -> Tensor:
    if planes.is_cuda:
        return planes.permute(0, 2, 3, 1).contiguous()
    return torch.from_numpy(np.ascontiguousarray(planes.numpy().transpose(0, 2, 3, 1)))


def _histograms(rows: Tensor) -> Tensor:
    """How often each level occurs: int64 (N, 3, 256)."""
    if not rows.is_cuda:
        return torch.tensor([Image.fromarray(image).histogram() for image in rows.numpy()]).view(-1, 3, 256)
    places = _with_channel(rows).flatten().long()
    counts = torch.zeros(len(rows) * 3 * 256, dtype=torch.int32, device=rows.device)
    return counts.scatter_add_(0, places, counts.new_ones(1).expand_as(places)).view(-1, 3, 256).long()


def _with_channel(rows: Tensor) -> Tensor:
    """Each pixel's level plus 256 times the number of its channel, counted over all images: int32 (N, H, W * 3)."""
    first = torch.arange(len(rows) * 3, dtype=torch.int32, device=rows.device).mul_(256).view(-1, 3)
    return rows.flatten(2).int().add_(_every(first, rows.shape[2]))


_ON_ROWS: dict[str, Operation] = {
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
}
NAMES = tuple(_ON_ROWS)
"""An operation's code is its place here."""


def _on_images(operation: Operation, images: Tensor, magnitudes: Tensor) -> Tensor:
    rows = operation(images.permute(0, 2, 3, 1).contiguous(), magnitudes.to(images.device, torch.float64))
    return _like(images, rows)


def _like(images: Tensor, rows: Tensor) -> Tensor:
    """(N, H, W, 3) as (N, 3, H, W), in the order of memory that `images` has."""
    changed = rows.permute(0, 3, 1, 2)
    return changed.contiguous() if images.is_contiguous() else changed


OPERATIONS: dict[str, Operation] = {name: partial(_on_images, operation) for name, operation in _ON_ROWS.items()}
"""By name: uint8 images (N, 3, H, W), NCHW or NHWC in memory, and a magnitude each (N,) to images of the same layout."""


class Grouped(NamedTuple):
    """Operations on a batch, several an image in turn, so arranged that a device does those of a kind together."""

    moves: Tensor
    """int64 (K + 1, N): by turn, which image of the turn before comes at a place; the last, back to the batch's order."""
    magnitudes: Tensor
    """float64 (K, N), by turn and place."""
    runs: list[list[tuple[int, int, int]]]
    """By turn: code, first place and the one after the last."""

    def to(self, device: torch.device) -> Grouped:
        moves, magnitudes = (table.to(device, non_blocking=True) for table in (self.moves, self.magnitudes))
        return Grouped(moves, magnitudes, self.runs)


def grouped(codes: Tensor, magnitudes: Tensor) -> Grouped:
    """Arrange operations on the host. codes, magnitudes: (N, K) on the CPU: image by image, in the order of their turn."""
    orders = codes.T.argsort(dim=1, stable=True)
    back = orders.argsort(dim=1)
    first = torch.arange(len(codes)).unsqueeze(0)
    before, after = torch.cat((first, back)), torch.cat((orders, first))
    runs = [_runs(turn.gather(0, order)) for turn, order in zip(codes.T, orders, strict=True)]
    return Grouped(before.gather(1, after), magnitudes.T.double().gather(1, orders), runs)


def _runs(codes: Tensor) -> list[tuple[int, int, int]]:
    found, start = [], 0
    for code, count in zip(*(each.tolist() for each in codes.unique_consecutive(return_counts=True)), strict=True):
        found += [
            (code, place, min(place + _AT_ONCE, start + count)) for place in range(start, start + count, _AT_ONCE)
        ]
        start += count
    return found


def apply_grouped(images: Tensor, operations: Grouped) -> Tensor:
    """uint8 (N, 3, H, W) after all operations, which lie on the images' device; in the same order of memory."""
    rows = images.permute(0, 2, 3, 1).contiguous()
    for move, magnitudes, runs in zip(operations.moves, operations.magnitudes, operations.runs, strict=False):
        rows = rows.index_select(0, move)
        rows = torch.cat([_ON_ROWS[NAMES[code]](rows[a:b], magnitudes[a:b]) for code, a, b in runs])
    return _like(images, rows.index_select(0, operations.moves[-1]))


def apply_operations(images: Tensor, codes: Tensor, magnitudes: Tensor) -> Tensor:
    """Operations in turn on each image of a batch.

    images: uint8 (N, 3, H, W); codes: int8 (N, K), each a place in NAMES; magnitudes: (N, K); both on the CPU.
    """
    if len(images) > 1 or images.is_cuda:
        return apply_grouped(images, grouped(codes, magnitudes).to(images.device))
    rows = images.permute(0, 2, 3, 1).contiguous()
    for place, code in enumerate(codes[0].tolist()):
        rows = _ON_ROWS[NAMES[code]](rows, magnitudes[0, place : place + 1].double())
    return _like(images, rows)
