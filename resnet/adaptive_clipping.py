"""Adaptive gradient clipping: unit by unit, to a share of the norm of the unit's weights."""

# torch._foreach_* has no public name; torch's own clipping is built of it.

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LEAST_NORM, _LEAST_GRADIENT = 1e-3, 1e-6


@torch.no_grad()
def clip_adaptively(parameters: Sequence[Tensor], most: float) -> None:
    """Scale down, in place, what gradient of a unit has a larger L2 norm than `most` times that of its weights.

    A unit is what leads to one output channel; a norm's or a bias's tensor is one as a whole. Weights of a norm below
    1e-3 count as that. Brock et al. 2021 (arXiv:2102.06171), section 4.1, as in timm. The host never waits for the
    device.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not parameters:
        return
    weight_norms, gradient_norms = _unit_norms(parameters), _unit_norms(gradients)
    largest = torch.cat(weight_norms).clamp_(min=_LEAST_NORM).mul_(most)
    there = torch.cat(gradient_norms)
    factors = torch.where(there < largest, 1.0, largest / there.clamp(min=_LEAST_GRADIENT))
    parts = factors.split([len(norms) for norms in gradient_norms])
    shaped = [
        part.view(-1, *[1] * (gradient.dim() - 1)) if gradient.dim() > 1 else part
        for part, gradient in zip(parts, gradients, strict=True)
    ]
    torch._foreach_mul_(gradients, shaped)


def _unit_norms(tensors: list[Tensor]) -> list[Tensor]:
    """Of each tensor (units,)."""
    whole = iter(torch._foreach_norm(one) if (one := [tensor for tensor in tensors if tensor.dim() <= 1]) else ())
    return [
        next(whole)[None] if tensor.dim() <= 1 else torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.dim())))
        for tensor in tensors
    ]
