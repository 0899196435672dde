"""Smaller networks: channels taken out by Torch-Pruning, or weights set to zero where they stand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from recipes.schema.model import Model, net_of, own_channels
from recipes.schema.model_checks import not_pruned
from resnet.net import ResNet, build_model
from resnet.tools.export.extras import need

PARTS = ("stem", *(f"layer{stage}" for stage in range(1, 7)))
IMPORTANCES = ("l2", "batchnorm")
"""Of a channel: the L2 norm of its weights, or the scale of BatchNorm (Liu et al. 2017, arXiv:1708.06519)."""
_TRACED_SIZE = 64
"""Pixels of the image by which the network is traced: large enough for all of its strides."""


class Pruning(NamedTuple):
    """What is taken away."""

    amount: float
    """Structured: the share of the channels of each layer; else that of all weights of convolutions."""
    structured: bool = True
    importance: str = IMPORTANCES[0]
    skip: tuple[str, ...] = ()
    """PARTS that keep their channels."""


def check(pruning: Pruning, model: Model) -> None:
    """Raise ValueError for what cannot be done with a network, or cannot be done here."""
    if not 0 < pruning.amount < 1:
        raise ValueError(f"--amount {pruning.amount:g}: give a share above 0 and below 1, as 0.5")
    parts = PARTS[: 1 + len(net_of(model).layers)]
    for part in pruning.skip:
        if part not in parts:
            raise ValueError(f"--skip {part}: this network has {', '.join(parts)}")
    if not pruning.structured:
        if pruning.skip or pruning.importance != IMPORTANCES[0]:
            raise ValueError("--skip and --importance are for channels: leave out --unstructured")
        return
    if kind := not_pruned(model, net_of(model)):
        raise ValueError(f"networks with model.{kind} lose no channels: --unstructured sets weights to zero")
    for place, channels, groups in _prunable(model, pruning.skip):
        # The same number is taken from each group.
        if (each := channels // groups) - _removed(each, pruning.amount) < 1:
            of = f" in each of {groups} groups" if groups > 1 else ""
            raise ValueError(f"--amount {pruning.amount:g} leaves none of the {each} channels of {place}{of}")
    need("prune", "torch_pruning")


def _removed(channels: int, amount: float) -> int:
    """As Torch-Pruning rounds: what is kept is rounded down."""
    return channels - int(channels * (1 - amount))


def _prunable(model: Model, skip: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Places that are pruned, the channels of each and their groups."""
    net = net_of(model)
    for place in _places(model):
        if not _is_skipped(place, model, skip):
            own = own_channels(model, place)
            assert own, place
            yield place, model.channels.get(place, own), net.groups if "." in place else 1


def _places(model: Model) -> Iterator[str]:
    """All places of a network that `model.channels` may name, in the order of its layers."""
    yield "conv1"
    inner_numbers = range(1, len(net_of(model).kernels))
    for stage, blocks in enumerate(net_of(model).layers, 1):
        inner = (f"layer{stage}.{block}.conv{number}" for block in range(blocks) for number in inner_numbers)
        yield from (place for place in (*inner, f"layer{stage}") if own_channels(model, place) is not None)


def _is_skipped(place: str, model: Model, skip: Sequence[str]) -> bool:
    if place != "conv1":
        return place.partition(".")[0] in skip
    return "stem" in skip or ("layer1" in skip and own_channels(model, "layer1") is None)


def without_channels(network: ResNet, pruning: Pruning) -> ResNet:
    """A new network with a share of the channels of each layer; the outputs of the classifier stay.

    Layers that are added up lose the same channels: those of a stage's residual stream, the stem's with them where
    stage 1 has no downsample.
    """
    # Neither activations nor filters matter to what depends on what, and not all of them can be traced.
    plain = network.config.model_copy(
        update={"activation": "relu", "activation_args": {}, "blurpool": False, "stochastic_depth": 0.0}
    )
    weights = network.state_dict()
    with torch.random.fork_rng(devices=[]):
        twin = build_model(plain, network.fc.out_features)
        twin.load_state_dict(weights, strict=False)
        _remove_channels(twin, pruning)
        small = build_model(_model_of(twin, network.config), network.fc.out_features)
    left = twin.state_dict()
    small.load_state_dict({name: left.get(name, tensor) for name, tensor in weights.items()})
    return small.eval()


def _remove_channels(network: ResNet, pruning: Pruning) -> None:
    import torch_pruning

    kinds = {
        "l2": torch_pruning.importance.GroupMagnitudeImportance,
        "batchnorm": torch_pruning.importance.BNScaleImportance,
    }
    skipped = [place for place in _places(network.config) if _is_skipped(place, network.config, pruning.skip)]
    pruner = torch_pruning.pruner.BasePruner(
        network.eval(),
        torch.zeros(1, network.config.in_channels, _TRACED_SIZE, _TRACED_SIZE),
        importance=kinds[pruning.importance](),
        pruning_ratio=pruning.amount,
        ignored_layers=[network.fc, *(network.get_submodule(_convolution_of(place, network)) for place in skipped)],
        # Its defaults are shared by all pruners of a process.
        in_channel_groups={},
        out_channel_groups={},
    )
    pruner.step()


def _convolution_of(place: str, network: ResNet) -> str:
    """A convolution whose output channels a place names."""
    if place == "conv1" or "." in place:
        return place
    return f"{place}.0.conv{len(net_of(network.config).kernels)}"


def _model_of(pruned: ResNet, config: Model) -> Model:
    """The keys of a network that was pruned as another of its shape."""
    found = {place: pruned.get_submodule(_convolution_of(place, pruned)) for place in _places(config)}
    channels = {place: layer.out_channels for place, layer in found.items() if isinstance(layer, nn.Conv2d)}
    channels = {place: number for place, number in channels.items() if number != own_channels(config, place)}
    return Model.model_validate({**config.model_dump(), "channels": channels})


@torch.no_grad()
def with_zeros(network: ResNet, amount: float) -> ResNet:
    """Set that share of all weights of convolutions to zero, the smallest in absolute value over the whole network."""
    weights = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)]
    sizes = torch.cat([weight.abs().flatten() for weight in weights])
    zeros = torch.zeros_like(sizes, dtype=torch.bool)
    zeros[sizes.argsort()[: round(amount * len(sizes))]] = True
    for weight, chosen in zip(weights, zeros.split([weight.numel() for weight in weights]), strict=True):
        weight[chosen.view_as(weight)] = 0
    return network


def zero_share(network: nn.Module) -> float:
    """Of the weights of convolutions."""
    weights = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


@torch.no_grad()
def estimate_statistics(network: nn.Module, batches: Iterable[np.ndarray]) -> None:
    """Let BatchNorm's running statistics be the means over batches of images float32 (N, 3, H, W), normalised.

    With other channels before them, layers are given other values than those that training saw.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for images in batches:
        network(torch.from_numpy(images))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
