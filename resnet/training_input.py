"""From a micro-batch to what the network is given in training: normalised, erased, mixed, and what it is to answer."""

from __future__ import annotations

from typing import NamedTuple

import torch

from recipes.schema.recipe import Recipe
from resnet.data.batches import Batch
from resnet.data.on_device import Mix, checksum, draw_mix, erase, mix, soft_targets
from resnet.data.operations import apply_to_batch
from resnet.inference import network_input


class TrainingInput(NamedTuple):
    """What one forward pass of training takes, on the device."""

    images: torch.Tensor
    """(N, 3, H, W), normalised, of the type that the network computes in."""
    labels: torch.Tensor
    """int64 (N,): the classes of the images before they were mixed."""
    targets: torch.Tensor | None
    """float32 (N, classes): shares of the classes; None where the labels say it all (unmixed, plain cross-entropy)."""
    mixing: Mix | None
    """How the images were mixed, each with the one before it; None: not at all."""
    checksum: torch.Tensor
    """int64 (): of the images before they were normalised, see `resnet.data.on_device.checksum`."""
    several: bool = False
    """Whether an image may have several labels, as a source's own targets say."""

    @property
    def expected(self) -> torch.Tensor:
        """int64 (N,): the class with the largest share of each image."""
        return self.labels if self.mixing is None or self.targets is None else self.targets.argmax(1)

    def right(self, logits: torch.Tensor) -> torch.Tensor:
        """bool (N,): whether the highest of the logits (N, classes) is an image's class, or one with the largest share
        of several."""
        best = logits.argmax(1)
        if not self.several or self.targets is None:
            return best == self.expected
        share = self.targets.gather(1, best[:, None])[:, 0]
        return (share > 0) & (share == self.targets.amax(1))


def training_input(
    batch: Batch, recipe: Recipe, step: int, slot: int, classes: int, device: torch.device, dtype: torch.dtype
) -> TrainingInput:
    """Prepare a micro-batch, as a function of recipe, step and slot alone; the host does not wait for the device.

    slot: the micro-batch's place in the step, counted over all devices. dtype: of the images.
    """
    labels, pixels = batch.labels.to(device), batch.images.to(device)
    if batch.operations is not None:
        pixels = apply_to_batch(pixels, batch.operations)
    images = network_input(pixels, recipe, device, dtype)
    if batch.erased is not None:
        images = erase(images, batch.erased.to(device))
    mixing = draw_mix(recipe.augment, recipe.seed, step, slot, images.shape[-2], images.shape[-1])
    # What a loss wants that is not the classes' numbers.
    shares = recipe.loss != "cross_entropy" or recipe.class_weights is not None or recipe.plugins.loss is not None
    targets = None if batch.targets is None else batch.targets.to(device)
    if targets is None and (mixing is not None or shares):
        targets = soft_targets(labels, classes, recipe.label_smoothing)
    if mixing is not None and targets is not None:
        images, targets = mix(images, targets, mixing)
    return TrainingInput(images, labels, targets, mixing, checksum(pixels), batch.targets is not None)
