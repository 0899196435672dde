"""The keys of `optimizer` and `schedule`: how weights are updated, and how the learning rate goes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, model_validator

from recipes.schema.fields import Count, Group, NonNegative, Positive

Beta = Annotated[float, Field(ge=0, lt=1)]
PeakLr = Annotated[Positive, Field(description="Peak learning rate, of the whole batch.")]


class _Optimizer(Group):
    lr: PeakLr
    lr_for_batch_size: Count | None = None
    """Batch size that `lr` is stated for: another one scales it linearly. null: `lr` is used as it is."""
    weight_decay: NonNegative = 0.0
    """L2 penalty on weights of convolutions and classifier; adamw, nadamw, lamb: decoupled, else added to the gradient.
    """
    weight_decay_norm: NonNegative | None = None
    """The same for weights and biases of normalisation layers; null: as weight_decay."""
    weight_decay_bias: NonNegative | None = None
    """The same for biases of other layers; null: as weight_decay."""
    backbone_lr_scale: Positive = 1.0
    """Learning rate of everything but the classifier, as a multiple of lr (fine-tuning)."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate from each block to the one before it: the classifier has lr, the last block lr *
    layer_decay, the stem the least (fine-tuning; as timm divides a ResNet). 1: none."""

    @model_validator(mode="after")
    def _one_way_of_scaling(self) -> _Optimizer:
        if self.layer_decay != 1 and self.backbone_lr_scale != 1:
            raise ValueError(
                "layer_decay scales the backbone block by block: set backbone_lr_scale=1, or layer_decay=1"
            )
        return self

    def scale_of_layer(self, layer: int, blocks: int) -> float:
        """Multiple of lr by `layer_decay`. layer: 0 is the stem, then come the blocks, last the classifier."""
        return self.layer_decay ** (blocks + 1 - layer)


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
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of the averages of the gradient and of its square."""
    eps: Positive = 1e-8
    """Added to the denominator."""


class AdamW(Adam):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"]  # pyright: ignore[reportIncompatibleVariableOverride]


class NAdamW(Adam):
    """NAdam, Adam with Nesterov's momentum (Dozat 2016), with decoupled weight decay."""

    name: Literal["nadamw"]  # pyright: ignore[reportIncompatibleVariableOverride]
    lr: PeakLr = 2e-3
    momentum_decay: NonNegative = 4e-3
    """How soon the momentum climbs to the first of `betas`."""


class Rmsprop(_Optimizer):
    """RMSprop as torch has it (Hinton 2012; centered: Graves 2013, arXiv:1308.0850)."""

    name: Literal["rmsprop"]
    lr: PeakLr = 1e-2
    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the average of the squared gradient."""
    eps: Positive = 1e-8
    """Added to the root of that average."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum."""
    centered: bool = False
    """Divide by an estimate of the gradient's variance, not of its square."""


class RmspropTf(_Optimizer):
    """RMSprop as TensorFlow has it (timm's RMSpropTF), for recipes that were made there."""

    name: Literal["rmsprop_tf"]
    lr: PeakLr = 1e-2
    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the average of the squared gradient, which begins at 1."""
    eps: Positive = 1e-10
    """Added to that average, within the root."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum, of steps that already carry their learning rate."""


class Lamb(_Optimizer):
    """LAMB (You et al. 2019, arXiv:1904.00962)."""

    name: Literal["lamb"]
    lr: PeakLr = 5e-3
    betas: tuple[Beta, Beta] = (0.9, 0.999)
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


Optimizer = Annotated[Sgd | Adam | AdamW | NAdamW | Rmsprop | RmspropTf | Lamb | Lars, Discriminator("name")]
