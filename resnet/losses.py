"""The loss of a micro-batch, and the weights of the classes in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from recipes.schema.recipe import Recipe
from recipes.text import listed
from resnet.distill import distillation_loss
from resnet.trainer import Trainer
from resnet.training_input import TrainingInput


def loss_of_step(
    trainer: Trainer, logits: torch.Tensor, given: TrainingInput, taught: torch.Tensor | None
) -> torch.Tensor:
    """What a trainer minimises, float32 (): the mean over the micro-batch. logits, taught: float32 (N, classes), the
    network's and its teacher's."""
    if trainer.own_loss is None:
        loss = training_loss(logits, given, trainer.recipe, trainer.class_weights)
    else:
        assert given.targets is not None
        loss = trainer.own_loss(logits, given.targets)
    if taught is not None and trainer.recipe.distill:
        loss = distillation_loss(loss, logits, taught, trainer.recipe.distill)
    return loss


def training_loss(
    logits: torch.Tensor, given: TrainingInput, recipe: Recipe, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """The recipe's loss, float32 (): the mean over the micro-batch. logits: float32 (N, classes).

    weights: of the classes, float32 (classes,). Also with them it is the mean over the images, not, as torch has it,
    over their weights: so a step's gradient is the same however its images lie in micro-batches and on ranks.
    """
    targets = given.targets
    if targets is None:
        return F.cross_entropy(logits, given.labels, label_smoothing=recipe.label_smoothing)
    if recipe.loss == "cross_entropy":
        return F.cross_entropy(logits, targets, weight=weights)
    if recipe.loss == "focal":
        return focal_loss(logits, targets, recipe.focal_gamma, weights)
    # As Cui et al. 2019 (arXiv:1901.05555) weigh it: to weigh a class's own term would weigh its negatives, too.
    of_images = None if weights is None else (targets @ weights)[:, None]
    if recipe.bce_target_threshold is not None:
        targets = (targets > recipe.bce_target_threshold).to(targets.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets, weight=of_images)


def focal_loss(
    logits: torch.Tensor, targets: torch.Tensor, gamma: float, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over the images of sum_c weight_c target_c (1 - p_c)^gamma (-log p_c), p the softmax of the logits (N, C).

    For targets (N, C) of one class each it is FL of Lin et al. 2017 (arXiv:1708.02002, equations 4 and 5, alpha being
    the weights); for mixed and smoothed ones the same formula, each class by its share.
    """
    log_p = logits.log_softmax(1)
    # Not 0, where the slope of a power below 1 is infinite.
    unsure = (-log_p.expm1()).clamp(min=torch.finfo(log_p.dtype).tiny)
    terms = -targets * unsure**gamma * log_p
    return (terms if weights is None else terms * weights).sum(1).mean()


def class_weights(recipe: Recipe, classes: Sequence[str], drawn: np.ndarray) -> torch.Tensor | None:
    """Weights of the classes in the loss, float32 (classes,), such that an image of an epoch has 1 on average.

    drawn: images of each class in an epoch (classes,), of which balanced is total / (classes with images * drawn), as
    scikit-learn's `compute_class_weight`, and effective (1 - beta) / (1 - beta^drawn), scaled. None: there are none.
    Raises ValueError for names of no class, and where no image would count.
    """
    given, there = recipe.class_weights, drawn > 0
    if given is None:
        return None
    if isinstance(given, dict):
        if unknown := sorted(given.keys() - {*classes}):
            raise ValueError(f"class_weights names {listed(unknown)}, and the classes are {listed(list(classes))}")
        own = np.array([given.get(name, 1.0) for name in classes])
    elif given == "balanced":
        own = 1 / np.maximum(drawn, 1)
    else:
        own = 1 / -np.expm1(np.log(recipe.class_weights_beta) * np.maximum(drawn, 1))
    total = float((own * drawn).sum())
    if not total:
        raise ValueError("class_weights gives all classes that have images the weight 0: let one count")
    return torch.from_numpy(np.where(there, own * drawn.sum() / total, 0.0)).float()
