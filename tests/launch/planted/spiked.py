"""Runs whose loss jumped, or was no number."""

from __future__ import annotations

import math
from pathlib import Path

from tests.launch.planted import Place, fault
from tests.launch.planted.made import CIFAR, Made, own_code, trained, usual

_ONE_BATCH = """\
import torch
class Loss:
    calls = 0
def spoilt(logits, targets, at: int = 27):
    Loss.calls += 1
    loss = -(logits.log_softmax(1) * targets).sum(1)
    return 9 * loss if Loss.calls == at else loss
"""


@fault("spiked", "learning_rate")
def learning_rate_hundred_times_too_high(place: Place) -> Path:
    """A learning rate a hundred times the recipe's (trained)."""
    return trained(place, "high-lr", "optimizer.lr=5", "epochs=3")


@fault("spiked", "bad_batch")
def one_spoilt_batch(place: Place) -> Path:
    """One batch with a loss nine times too high (trained)."""
    file = own_code(place, "spoilt", _ONE_BATCH)
    return trained(place, "spoilt", f"plugins.loss={file}:spoilt", "epochs=4")


@fault("spiked", "resumed")
def went_on_with_another_learning_rate(place: Place) -> Path:
    """A run that went on with five hundred times the learning rate (trained twice)."""
    trained(place, "went-on", "schedule={name: constant}", "epochs=2")
    return trained(place, "went-on", "schedule={name: constant}", "epochs=4", "optimizer.lr=5")


@fault("spiked", "bad_batch")
def images_that_are_no_images(place: Place) -> Path:
    """A few batches of noise in the ninth epoch, in a log of a line each 100 steps."""
    return Made(place, "noise").log(lambda step: usual(step) + (2.4 if step == 3400 else 0)).ended()


@fault("spiked", "fp16")
def range_of_fp16(place: Place) -> Path:
    """fp16 whose scaler leaves out more and more steps, until the loss jumps."""
    made = Made(place, "fp16", *CIFAR, "precision=fp16")
    made.log(
        lambda step: usual(step) if step < 4000 else 2.3,
        top1=None,
        skipped_steps=lambda step: step // 8,
        loss_scale=lambda step: max(2.0 ** (16 - step // 150), 2**-10),
    )
    return made.ended()


@fault("spiked", "learning_rate")
def peak_of_one_cycle(place: Place) -> Path:
    """A loss that goes up for good at the peak of a one-cycle schedule."""
    words = ("recipe=cifar10_resnet20", "epochs=20", "schedule={name: onecycle, pct_start: 0.4}", "log_every=50")
    made = Made(place, "peak", *words)
    return made.log(lambda step: usual(step) if step < 3140 else 2.35 + 0.02 * math.sin(step)).ended()


@fault("spiked", "learning_rate")
def slow_divergence(place: Place) -> Path:
    """A loss that rises from step 3000 on, a little at each step."""
    made = Made(place, "diverges")
    return made.log(lambda step: usual(step) + max(0, step - 3000) / 1800, top1=None).running(7800)


@fault("spiked", "gradient")
def gradients_that_grow(place: Place) -> Path:
    """Gradients that grow a hundredfold, and then a loss that is no number."""
    made = Made(place, "grows", *CIFAR, "log_every=50")
    made.log(epochs=16, grad_norm=lambda step: 2.0 if step < 6000 else 2.0 * 1.02 ** min(step - 6000, 240))
    reason = "the loss is not finite since step 6263 (epoch 16.02, lr 0.001): a lower optimizer.lr, a warm-up can help"
    return made.ended("failed", failure="nan", reason=reason, step=6256)
