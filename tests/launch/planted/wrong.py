"""Runs that end well, with a result that is wrong."""

from __future__ import annotations

from pathlib import Path

from tests.launch.planted import Place, fault
from tests.launch.planted.made import CIFAR, Made, diagonal, trained

REST = ("recipe=cifar10_resnet20", "log_every=391")
"""The recipe as it is."""


def _well(place: Place, name: str) -> Made:
    """A run of the recipe that reached what it is known for."""
    return Made(place, name, *REST, "seed=3").log(epochs=163.683).evaluated(diagonal(right=0.913))


@fault("wrong", "changed_recipe")
def weight_decay_left_out(place: Place) -> Path:
    """The recipe without its weight decay, half a point below what it is known for."""
    return Made(place, "no-decay", *REST, "optimizer.weight_decay=0").log(top1=89.1, epochs=163.683).ended()


@fault("wrong", "changed_recipe")
def batch_size_without_its_learning_rate(place: Place) -> Path:
    """Eight times the batch, and another learning rate."""
    words = (*REST, "batch_size=1024", "optimizer.lr=0.02")
    return Made(place, "large-batch", *words).log(top1=86.0, epochs=163.683).ended()


@fault("wrong", "changed_recipe")
def evaluated_at_another_size(place: Place) -> Path:
    """Validation images at 176 px, of a recipe that evaluates at 224."""
    words = ("recipe=resnet50_imagenet", "augment.val_size=176", "augment.val_resize=200", "log_every=5000")
    made = Made(place, "small-val", *words, ranks=8, images=1281167)
    return made.log(top1=73.2, epochs=90).ended()


@fault("wrong", "data")
def fewer_images(place: Place) -> Path:
    """45,000 training images, where the recipe was made for 50,000."""
    return Made(place, "fewer", *REST, images=45000).log(top1=89.9, epochs=163.683).ended()


@fault("wrong", "data")
def other_validation_images(place: Place) -> Path:
    """Other validation images than those of a run that did well."""
    _well(place, "well-1").ended()
    made = Made(place, "other-val", *REST).log(top1=88.0, epochs=163.683)
    return made.evaluated(diagonal(images=800, right=0.88)).ended()


@fault("wrong", "versions")
def another_torchvision(place: Place) -> Path:
    """Another torchvision than that of a run that did well."""
    _well(place, "well-2").ended()
    made = Made(place, "old-torchvision", *REST).log(top1=89.6, epochs=163.683).evaluated(diagonal(right=0.896))
    made.information["packages"] = {**made.information["packages"], "torchvision": "0.9.0"}
    return made.ended()


@fault("wrong", "mixed_code")
def two_versions_of_the_program(place: Place) -> Path:
    """Two attempts with different commits of the program."""
    made = Made(place, "mixed", *REST).log(top1=89.6, epochs=163.683).evaluated(diagonal(right=0.896))
    made.attempt(0, git={"sha": "a" * 40, "changed": False})
    made.attempt(30000, git={"sha": "b" * 40, "changed": True})
    return made.ended()


@fault("wrong", "broken_images")
def images_that_cannot_be_read(place: Place) -> Path:
    """A hundredth of the images cannot be read."""
    made = Made(place, "broken", *REST)
    return made.log(top1=89.5, epochs=163.683, broken_images=lambda step: 480).ended()


@fault("wrong", "agrees")
def nothing_that_can_be_seen(place: Place) -> Path:
    """A run that misses its band, and differs in nothing from one that did not."""
    _well(place, "well-3").ended()
    return Made(place, "unlucky", *REST).log(top1=90.1, epochs=163.683).evaluated(diagonal(right=0.901)).ended()


@fault("wrong", "class_order")
def classes_in_another_order(place: Place) -> Path:
    """Validation labels in another order than those for training."""
    turned = diagonal(right=0.9)
    made = Made(place, "order", *REST).log(top1=1.1, epochs=163.683)
    return made.evaluated([turned[(at + 3) % 10] for at in range(10)]).ended()


@fault("wrong", "too_good")
def validation_images_in_training(place: Place) -> Path:
    """Validation images that were trained on as well."""
    return Made(place, "leak", *REST).log(top1=99.7, epochs=163.683).evaluated(diagonal(right=0.997)).ended()


@fault("wrong", "validation")
def validation_labels_at_random(place: Place) -> Path:
    """Validation labels that have nothing to do with their images."""
    return Made(place, "random-val", *CIFAR).log(top1=10.2).evaluated([[100] * 10] * 10).ended()


@fault("wrong", "average_lags")
def average_of_a_short_run(place: Place) -> Path:
    """An average of the weights that is far too slow for forty steps (trained)."""
    return trained(place, "lags", "ema={decay: 0.9999}", "epochs=6", "optimizer.lr=0.05")


@fault("wrong", "learns_nothing")
def learning_rate_of_nothing(place: Place) -> Path:
    """A learning rate a million times too low (trained)."""
    return trained(place, "low-lr", "optimizer.lr=1e-8", "epochs=2")
