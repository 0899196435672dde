"""The loss of a micro-batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from recipes.schema.recipe import Recipe
from resnet.training_input import TrainingInput


def training_loss(logits: torch.Tensor, given: TrainingInput, recipe: Recipe) -> torch.Tensor:
    """The recipe's loss, float32 (): the mean over the micro-batch. logits: float32 (N, classes)."""
    targets = given.targets
    if targets is None:
        return F.cross_entropy(logits, given.labels, label_smoothing=recipe.label_smoothing)
    if recipe.loss == "cross_entropy":
        return F.cross_entropy(logits, targets)
    if recipe.bce_target_threshold is not None:
        targets = (targets > recipe.bce_target_threshold).to(targets.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets)
