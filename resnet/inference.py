"""From uint8 images to logits: what training, evaluation and the tools share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from recipes.schema.recipe import Recipe
from resnet.answers import Answers
from resnet.data.batches import Batch
from resnet.data.on_device import normalise
from resnet.tally import Tally

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def network_input(images: torch.Tensor, recipe: Recipe, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """uint8 (N, C, H, W) as it comes from the loader -> the network's normalised input on the device.

    dtype: what the network computes in, since a wider one would be read and converted once more.
    """
    memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
    images = images.to(device).contiguous(memory_format=memory_format)
    return normalise(images, recipe.augment.mean, recipe.augment.std, dtype)


def input_dtype(recipe: Recipe, precision: str) -> torch.dtype:
    """What training's network is given. precision: Accelerate's name of it."""
    # Mixup would round what it makes a second time.
    return torch.float32 if recipe.augment.mixup else _DTYPES.get(precision, torch.float32)


def count_batch(tally: Tally, network: nn.Module, batch: Batch, recipe: Recipe, answers: Answers | None = None) -> None:
    """Evaluate a batch on the tally's device and count it there. answers: keeps what the network says of it, too."""
    device = tally.loss.device
    labels = batch.labels.to(device)
    logits = predict_logits(network, batch.images, recipe, device)
    targets = None if batch.targets is None else batch.targets.to(device)
    indices = batch.indices(device)
    if answers is not None:
        answers.add(logits, labels if targets is None else targets, indices)
    count_logits(tally, logits, labels, indices, recipe, targets)


def count_logits(
    tally: Tally,
    logits: torch.Tensor,
    labels: torch.Tensor,
    indices: torch.Tensor,
    recipe: Recipe,
    targets: torch.Tensor | None = None,
) -> None:
    """Count what a network says of images: logits float32 (N, classes), their labels and indices (N,).

    targets: float32 (N, classes) of images with several labels: the one with the highest logit counts as theirs, and
    the loss is the binary cross-entropy.
    """
    if targets is None:
        loss = F.cross_entropy(logits, labels, reduction="sum")
    else:
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1).sum()
        labels = _nearest_label(logits, targets)
        tally.several_labels = True
    tally.add(loss, logits, class_probabilities(logits, recipe), labels, indices)


def _nearest_label(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """int64 (N,): of each image's labels the one with the highest logit; where it has none, a class that is wrong."""
    among = logits.masked_fill(targets <= 0.5, -torch.inf).argmax(1)
    return torch.where((targets > 0.5).any(1), among, logits.argmin(1))


def class_probabilities(logits: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """What a network says by its logits (N, classes): how likely each class is."""
    # A network trained with BCE has learnt a probability for each class on its own.
    return logits.sigmoid() if recipe.loss == "bce" else logits.softmax(1)


def predict_logits(network: nn.Module, images: torch.Tensor, recipe: Recipe, device: torch.device) -> torch.Tensor:
    """Logits float32 (N, classes) of uint8 images (N, 3, H, W); with `eval.flip` the mean of both mirror images."""
    kind = device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    images = network_input(images, recipe, device, dtype)
    logits = network(images).float()
    if recipe.eval.flip:
        logits = (logits + network(images.flip(3)).float()) / 2
    return logits
