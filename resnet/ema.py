"""Averages of a network's weights and BatchNorm statistics: an exponential moving one, or an equal one."""

from __future__ import annotations

import copy as copying

import torch
from torch import Tensor, nn


class Ema:
    """`module`, a copy of the model in evaluation mode, is the average of its weights and floating-point buffers.

    decay: share of the average that one update keeps; None: all that was taken in counts alike, as in stochastic
    weight averaging. The first update copies the model, as torch.optim.swa_utils.AveragedModel does; integer buffers
    are always copied. No update makes the host wait for the device.
    """

    def __init__(self, model: nn.Module, decay: float | None, every: int = 1) -> None:
        self.module = copying.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.every = every
        self.updates = 0
        """Updates since the average was last a copy."""
        self._source: nn.Module | None = None
        self._floats: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._integers: tuple[list[Tensor], list[Tensor]] = ([], [])

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, copy: bool = False) -> None:
        """Take in the model as it is after optimizer step `step` (0-based), if this is one of each `every`-th.

        copy: become a copy of the model instead, and start averaging afresh at the next update.
        The model's tensors must stay the same objects from the first update on (do not move it to another device).
        """
        if step % self.every:
            return
        if model is not self._source:
            self._pair_with(model)
        averages, current = self._floats
        if copy or self.updates == 0:
            torch._foreach_copy_(averages, current)
        else:
            share = 1 / (self.updates + 1) if self.decay is None else 1 - self.decay
            torch._foreach_lerp_(averages, current, share)
        if self._integers[0]:
            torch._foreach_copy_(*self._integers)
        self.updates = 0 if copy else self.updates + 1

    def _pair_with(self, model: nn.Module) -> None:
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        assert all(ours.shape == theirs.shape for ours, theirs in pairs)
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        integers = [pair for pair in pairs if not pair[0].is_floating_point()]
        self._floats = [ours for ours, _ in floats], [theirs for _, theirs in floats]
        self._integers = [ours for ours, _ in integers], [theirs for _, theirs in integers]
        self._source = model


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
