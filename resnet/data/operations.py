"""What policies, colour jitter and rotation do to images, each with a magnitude of its own.

Names and magnitudes are those of torchvision's v2 policies, bilinear, black outside: `Brightness` of 0.3 is
`adjust_brightness(image, 1.3)`, and so is a brightness of 1.3 in colour jitter; `Rotate` of 30 is `rotate(image, 30)`.
`Rotation` is what `RandomRotation` does: as `Rotate`, but that a border with the black is darker still. Pixels are
within a level (of 255) of torchvision's kernels, and most are the same; a factor of `Color` beyond 2, which colour
jitter can draw, is two levels off in one value of ten million.

There are two sets of functions: for one image on a CPU, where NumPy is fastest, and for batches of any size on a GPU
and of small images on a CPU.
"""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from resnet.data import operations_on_cpu, operations_on_device
from resnet.data.draws import Operation

NAMES = tuple(operations_on_device.BY_NAME)
"""An operation's code is its place here; 0 is Identity."""
_AT_ONCE = 32
"""Images that an operation takes together on a device: bounds the memory for what lies in between."""
_SMALL = 48 * 48
"""Pixels up to which a CPU, too, does many images together: calls then cost more than arithmetic."""


class Operations(NamedTuple):
    """Those of a batch of N images, K each in turn, so arranged that a device does those of a name together."""

    moves: Tensor
    """int64 (K + 1, N): for each turn, which image of the turn before comes at a place; last, the batch's own order."""
    magnitudes: Tensor
    """float64 (K, N): by turn and place."""
    runs: list[list[tuple[int, int, int]]]
    """By turn: code, first place and the one after the last."""

    @classmethod
    def of(cls, drawn: list[list[Operation]]) -> Operations:
        """Of each image its operations in their order; an image that has fewer than others is left alone at last."""
        most = max(map(len, drawn))
        padded = [[*found, *[("Identity", 0.0)] * (most - len(found))] for found in drawn]
        codes = torch.tensor([[NAMES.index(name) for name, _ in found] for found in padded]).T
        magnitudes = torch.tensor([[magnitude for _, magnitude in found] for found in padded], dtype=torch.float64).T
        orders, batch = codes.argsort(dim=1, stable=True), torch.arange(len(drawn)).unsqueeze(0)
        moves = torch.cat((batch, orders.argsort(dim=1))).gather(1, torch.cat((orders, batch)))
        return cls(moves, magnitudes.gather(1, orders), [_runs(turn) for turn in codes.sort(dim=1).values.tolist()])

    def to(self, device: torch.device) -> Operations:
        """The same on a device, without waiting for it where the memory is pinned."""
        return self._replace(
            moves=self.moves.to(device, non_blocking=True), magnitudes=self.magnitudes.to(device, non_blocking=True)
        )


def _runs(codes: list[int]) -> list[tuple[int, int, int]]:
    """Where one code is by itself, of sorted ones: in pieces that are not too long."""
    found, start = [], 0
    for code, same in groupby(codes):
        stop = start + len(list(same))
        found += [(code, place, min(place + _AT_ONCE, stop)) for place in range(start, stop, _AT_ONCE)]
        start = stop
    return found


def apply_to_one(image: Tensor, operations: list[Operation]) -> Tensor:
    """What operations make, one after the other, of an image uint8 (3, H, W); in the same order of memory."""
    pixels = image.permute(1, 2, 0).contiguous()
    if _many_at_once(pixels):
        for name, magnitude in operations:
            at = torch.tensor([magnitude], dtype=torch.float64, device=image.device)
            pixels = operations_on_device.BY_NAME[name](pixels.unsqueeze(0), at).squeeze(0)
    else:
        array = pixels.numpy()
        for name, magnitude in operations:
            array = operations_on_cpu.BY_NAME[name](array, magnitude)
        pixels = torch.from_numpy(array)
    return _ordered_as(image, pixels.permute(2, 0, 1))


def apply_to_all(images: Tensor, operations: list[list[Operation]]) -> Tensor:
    """Of each of the images uint8 (N, 3, H, W), on a CPU, what its operations make of it; may write to `images`."""
    if _many_at_once(images.permute(0, 2, 3, 1)):
        return apply_to_batch(images, Operations.of(operations))
    for row, found in enumerate(operations):
        if found:
            images[row] = apply_to_one(images[row], found)
    return images


def apply_to_batch(images: Tensor, operations: Operations) -> Tensor:
    """What the operations make of images uint8 (N, 3, H, W); in the same order of memory.

    The host waits for no device, nor a device for the host but for the operations' two small tables, where they are
    still on the host.
    """
    rows, (moves, magnitudes, runs) = images.permute(0, 2, 3, 1).contiguous(), operations.to(images.device)
    for turn, pieces in enumerate(runs):
        rows = rows.index_select(0, moves[turn])
        rows = torch.cat([_apply(NAMES[code], rows[a:b], magnitudes[turn, a:b]) for code, a, b in pieces])
    return _ordered_as(images, rows.index_select(0, moves[-1]).permute(0, 3, 1, 2))


def _apply(name: str, rows: Tensor, magnitudes: Tensor) -> Tensor:
    if _many_at_once(rows):
        return operations_on_device.BY_NAME[name](rows, magnitudes)
    make = operations_on_cpu.BY_NAME[name]
    pairs = zip(rows.numpy(), magnitudes.tolist(), strict=True)
    return torch.stack([torch.from_numpy(make(image, magnitude)) for image, magnitude in pairs])


def _many_at_once(rows: Tensor) -> bool:
    """Decided by the size alone, not by how many there are: an image becomes the same in any company."""
    return rows.device.type != "cpu" or rows.shape[-3] * rows.shape[-2] <= _SMALL


def _ordered_as(images: Tensor, made: Tensor) -> Tensor:
    return made.contiguous() if images.is_contiguous() else made
