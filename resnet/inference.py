"""From uint8 images to logits: what training, evaluation and the tools share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from recipes.schema.recipe import Recipe
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


def count_batch(tally: Tally, network: nn.Module, batch: Batch, recipe: Recipe) -> None:
    """Evaluate a batch on the tally's device and count it there."""
    device = tally.loss.device
    labels = batch.labels.to(device)
    logits = predict_logits(network, batch.images, recipe, device)
    count_logits(tally, logits, labels, batch.indices(device), recipe)


def count_logits(
    tally: Tally, logits: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor, recipe: Recipe
) -> None:
    """Count what a network says of images: logits float32 (N, classes), their labels and indices (N,)."""
    loss = F.cross_entropy(logits, labels, reduction="sum")
    tally.add(loss, logits, class_probabilities(logits, recipe), labels, indices)


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
