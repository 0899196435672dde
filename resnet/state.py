"""All that must survive a restart, in one object. Randomness is a function of the step and needs no place here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from resnet.ema import Ema
from resnet.metrics import Window
from resnet.plugins import Callbacks


@dataclass
class TrainState:
    model: nn.Module
    """The network itself, not what DDP or torch.compile wrapped around it."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: Ema | None
    window: Window
    callbacks: Callbacks | None = None
    """Of the user's own."""
    step: int = 0
    """Optimizer steps attempted."""
    evaluated: int = 0
    """Step of the last evaluation."""
    best: float | None = None
    """Best value of the recipe's metric."""
    best_step: int | None = None
    stopping: dict[str, Any] = field(default_factory=dict)
    """Of early stopping: its `metric`, the `best` value of it, evaluations `waited` since; empty before the first."""

    @property
    def weights(self) -> nn.Module:
        """The network to evaluate and to keep: the average where there is one."""
        return self.ema.module if self.ema else self.model


def networks(state: TrainState) -> list[nn.Module]:
    return [state.model, *([state.ema.module] if state.ema else [])]
