"""What ResNets are built of: stems, shortcuts, squeeze-and-excitation, and residual blocks of both orders."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from recipes.nets import BlockShape, Net, convolutions, se_width
from recipes.schema.model import Model
from recipes.schema.model_checks import GROUPS_OF_NORM


class ResidualBlock(nn.Module):
    """Convolutions, each with a norm behind it, and activations between them and after the sum (He et al. 2015).

    Input: (N, inputs, H, W); output: (N, outputs, H/stride, W/stride), rounded up. Names are torchvision's: conv1, bn1,
    ..., relu, downsample; se is timm's. Each call of an activation has a module of its own, as quantisation needs it,
    but one with parameters is one module, as in torchvision's block.
    """

    def __init__(self, config: Model, net: Net, shape: BlockShape, drop_rate: float) -> None:
        super().__init__()
        # The order of torchvision, so that new weights are the same.
        downsample, layers = shortcut(config, net, shape), [*convolutions(net, shape)]
        self.depth = len(layers)
        self.projects = isinstance(downsample, nn.Sequential)
        for number, layer in enumerate(layers, 1):
            convolution = make_convolution(config, *layer)
            if net.preact:
                self.add_module(f"bn{number}", make_norm(config, layer.inputs))
                self.add_module(f"conv{number}", convolution)
            else:
                self.add_module(f"conv{number}", convolution)
                self.add_module(f"bn{number}", make_norm(config, layer.outputs))
            # Where torchvision's two blocks have it: the order of parameters is that of an optimizer's state.
            if number == (1 if net.expansion == 1 else self.depth):
                self.relu = make_activation(config.activation, config.activation_args)
        _activate_each_call(self, config)
        # What is not there is not called: each call costs the host as much as a small kernel's launch.
        self.dropout = nn.Dropout(config.block_dropout) if config.block_dropout else None
        self.se = SqueezeExcite(shape.outputs, se_width(net, shape.outputs)) if net.attention == "se" else None
        self.downsample = downsample
        self.stochastic_depth = StochasticDepth(drop_rate, "row") if config.stochastic_depth else None
        # By name, as fusing and quantising put other modules in their place.
        self._steps = [
            (f"conv{number}", f"bn{number}", f"relu{number}" if number > 1 else "relu")
            for number in range(1, self.depth + 1)
        ]

    def forward(self, x: Tensor) -> Tensor:
        branch = x
        for conv, bn, relu in self._steps[:-1]:
            branch = getattr(self, relu)(getattr(self, bn)(getattr(self, conv)(branch)))
            if self.dropout is not None:
                branch = self.dropout(branch)
        conv, bn, relu = self._steps[-1]
        branch = self._ended(getattr(self, bn)(getattr(self, conv)(branch)))
        return getattr(self, relu)(branch + (x if self.downsample is None else self.downsample(x)))

    def _ended(self, branch: Tensor) -> Tensor:
        """A branch with what follows its last layer."""
        if self.se is not None:
            branch = self.se(branch)
        return branch if self.stochastic_depth is None else self.stochastic_depth(branch)

    def zero_last(self) -> None:
        """Let the branch begin at zero."""
        nn.init.zeros_(self.get_parameter(f"bn{self.depth}.weight"))


class PreactBlock(ResidualBlock):
    """As `ResidualBlock`, with norm and activation before each convolution, and none after the sum (He et al. 2016).

    A projection is of the activated input, as in Wide ResNets and in timm's.
    """

    def forward(self, x: Tensor) -> Tensor:
        conv, bn, relu = self._steps[0]
        branch = getattr(self, relu)(getattr(self, bn)(x))
        given = branch if self.projects else x
        kept = given if self.downsample is None else self.downsample(given)
        branch = getattr(self, conv)(branch)
        for conv, bn, relu in self._steps[1:]:
            branch = getattr(self, relu)(getattr(self, bn)(branch))
            if self.dropout is not None:
                branch = self.dropout(branch)
            branch = getattr(self, conv)(branch)
        return self._ended(branch) + kept

    def zero_last(self) -> None:
        """Let the branch begin at zero: its last layer is a convolution."""
        nn.init.zeros_(self.get_parameter(f"conv{self.depth}.weight"))


def _activate_each_call(block: ResidualBlock, config: Model) -> None:
    shared = next(block.relu.parameters(), None) is not None
    for number in range(2, block.depth + 1):
        if shared:
            # One set of parameters, under one name.
            object.__setattr__(block, f"relu{number}", block.relu)
        else:
            block.add_module(f"relu{number}", make_activation(config.activation, config.activation_args))


class SqueezeExcite(nn.Module):
    """Scales each channel by what is made of the means of all (Hu et al. 2017, arXiv:1709.01507); timm's names."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, kernel_size=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(hidden, channels, kernel_size=1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.fc2(self.relu(self.fc1(means))))


class PaddedShortcut(nn.Module):
    """Every other pixel of every other row where it is strided, and channels of zeros after its own.

    Option A of He et al. 2015 (arXiv:1512.03385), section 3.3.
    """

    def __init__(self, stride: int, more: int) -> None:
        super().__init__()
        self.stride, self.more = stride, more

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))


def shortcut(config: Model, net: Net, shape: BlockShape) -> nn.Module | None:
    """Beside a block's convolutions; None: the identity."""
    if not shape.changes:
        return None
    if net.shortcut == "padded":
        return PaddedShortcut(shape.stride, shape.outputs - shape.inputs)
    pool, stride = [], shape.stride
    if net.downsample == "avgpool":
        # timm's names count it also where it does nothing.
        pool = [nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()]
        stride = 1
    projection = make_convolution(config, shape.inputs, shape.outputs, 1, stride)
    return nn.Sequential(*pool, projection, *([] if net.preact else [make_norm(config, shape.outputs)]))


def make_stem(config: Model, net: Net, outputs: int) -> nn.Module:
    """The first convolution, or the three of a deep stem: to (N, outputs, H/2, W/2), or of the same size for CIFAR."""
    if net.stem == "imagenet":
        return nn.Conv2d(config.in_channels, outputs, kernel_size=7, stride=2, padding=3, bias=False)
    if net.stem == "cifar":
        return nn.Conv2d(config.in_channels, outputs, kernel_size=3, padding=1, bias=False)
    half, layers = outputs // 2, []
    for inputs, stride in ((config.in_channels, 2), (half, 1)):
        layers.append(nn.Conv2d(inputs, half, kernel_size=3, stride=stride, padding=1, bias=False))
        layers += [make_norm(config, half), make_activation(config.activation, config.activation_args)]
    return nn.Sequential(*layers, nn.Conv2d(half, outputs, kernel_size=3, padding=1, bias=False))


def make_pool(config: Model, net: Net, channels: int) -> nn.Module:
    """What follows the stem."""
    if net.maxpool == "conv":
        convolution, norm = make_convolution(config, channels, channels, 3, 2), make_norm(config, channels)
        return nn.Sequential(convolution, norm, make_activation(config.activation, config.activation_args))
    return nn.MaxPool2d(kernel_size=3, stride=2, padding=1) if net.maxpool else nn.Identity()


def make_norm(config: Model, channels: int) -> nn.Module:
    if config.norm == "group":
        return nn.GroupNorm(config.norm_groups or GROUPS_OF_NORM, channels, config.bn_eps)
    return nn.BatchNorm2d(channels, config.bn_eps, config.bn_momentum)


def make_convolution(
    config: Model, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Without bias, padded to keep the size. FFCV's blurpool is of all that are strided but the stem's."""
    kind = BlurredConv2d if config.blurpool and stride > 1 else nn.Conv2d
    return kind(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


class BlurredConv2d(nn.Conv2d):
    """A convolution behind a 3x3 binomial low-pass filter of stride 1; its weight keeps its name.

    Zhang 2019 (arXiv:1904.11486); the filter before the strided convolution is the order of FFCV's ImageNet code.
    """

    blur: Tensor

    def __init__(self, in_channels: int, *arguments: int, **others: int | bool) -> None:
        super().__init__(in_channels, *arguments, **others)  # pyright: ignore[reportArgumentType, reportCallIssue]
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("blur", taps.outer(taps).repeat(in_channels, 1, 1, 1), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.conv2d(input, self.blur, padding=1, groups=self.in_channels))


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", name).lower()


ACTIVATION_CLASSES = {_snake_case(name): getattr(nn, name) for name in nn.modules.activation.__all__}
"""torch.nn's activations by their snake-case names."""


def make_activation(name: str, arguments: Mapping[str, float | bool]) -> nn.Module:
    """An activation of torch.nn, in place where it can be. Raises ValueError for values that it does not take.

    name, arguments: of `recipes.schema.model.ACTIVATIONS`.
    """
    kind = ACTIVATION_CLASSES[name]
    inplace = {"inplace": True} if "inplace" in inspect.signature(kind).parameters else {}
    try:
        return kind(**arguments, **inplace)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"model.activation_args do not fit {name}: {error}") from error
