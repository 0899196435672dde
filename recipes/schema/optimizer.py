"""The keys of `optimizer` and `schedule`: how weights are updated, and how the learning rate goes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, model_validator

from recipes.schema.fields import Count, Fraction, Group, NonNegative, Positive

PeakLr = Annotated[Positive, Field(description="Peak learning rate, of the whole batch.")]


class _Optimizer(Group):
    lr: PeakLr
    lr_for_batch_size: Count | None = None
    """Batch size that `lr` is stated for: another one scales it linearly. null: `lr` is used as it is."""
    weight_decay: NonNegative = 0.0
    """L2 penalty on weights of convolutions and classifier (sgd, adam, lars: added to the gradient; else decoupled)."""
    weight_decay_norm: NonNegative | None = None
    """The same for weights and biases of normalisation layers; null: as weight_decay."""
    weight_decay_bias: NonNegative | None = None
    """The same for biases of other layers; null: as weight_decay."""
    backbone_lr_scale: Positive = 1.0
    """Learning rate of everything but the classifier, as a multiple of lr (fine-tuning)."""


class Sgd(_Optimizer):
    """SGD with momentum."""

    name: Literal["sgd"]
    lr: PeakLr = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum."""
    nesterov: bool = False
    """Nesterov's form of momentum."""

    @model_validator(mode="after")
    def _nesterov(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum above 0")
        return self


class Adam(_Optimizer):
    """Adam, its weight decay added to the gradient."""

    name: Literal["adam"]
    lr: PeakLr = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay of the averages of the gradient and of its square."""
    eps: Positive = 1e-8
    """Added to the denominator."""


class AdamW(Adam):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"]  # pyright: ignore[reportIncompatibleVariableOverride]


class Lamb(_Optimizer):
    """LAMB (You et al. 2019, arXiv:1904.00962)."""

    name: Literal["lamb"]
    lr: PeakLr = 5e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay of the averages of the gradient and of its square."""
    eps: Positive = 1e-6
    """Added to the denominator."""


class Lars(_Optimizer):
    """LARS (You et al. 2017, arXiv:1708.03888); parameters without weight decay are not rescaled."""

    name: Literal["lars"]
    lr: PeakLr = 10.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum."""
    trust_coefficient: Positive = 0.001
    """Ratio of a layer's step to its weights."""
    eps: NonNegative = 0.0
    """Added to the denominator of that ratio."""


Optimizer = Annotated[Sgd | Adam | AdamW | Lamb | Lars, Discriminator("name")]
