"""A network built from a file of weights, and checked before it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch

from recipes.schema.model import Model
from recipes.schema.plugins import PluginFields
from recipes.text import plural
from resnet.net import ResNet, build_model
from resnet.plugins import own_model
from resnet.state_dicts import HEAD, mismatches
from resnet.weights_file import find_weights, read_info

_MOST_CLASSES = 1_000_000


def network_of(
    model: Model, classes: int | None, weights: Path, tell: Callable[[str], object] = lambda _: None
) -> ResNet:
    """A network on the CPU with weights from a file; torch's random numbers stay as they are.

    classes: outputs that the network must have; None: as many as the weights do. tell: is called with what the user
    should know of how another trainer's file was read.
    Raises ValueError where the weights are of another network, or cannot be read.
    """
    if model.plugin:
        return _own_network(model, model.plugin, classes, weights)
    tensors, notes, _ = find_weights(weights, model)
    for note in notes:
        tell(f"{weights}: {note}")
    there = outputs_of(tensors, weights)
    if classes not in (None, there):
        raise ValueError(
            f"{weights} does not match this network: it is for {plural(there, 'class')}, and here are {classes}"
        )
    if wrong := unfit(tensors, model, there):
        raise ValueError(f"{weights} does not match this network: {wrong}")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        network = build_model(model, there)
    network.load_state_dict(tensors, strict=False)
    return network


def _own_network(model: Model, plugin: PluginFields, classes: int | None, weights: Path) -> ResNet:
    """As `network_of`, of a network of the user's own."""
    info, tensors = read_info(weights), find_weights(weights, model).tensors
    if (outputs := classes or (info and len(info.classes))) is None:
        raise ValueError(f"{weights} does not say how many classes its network tells apart")
    with torch.random.fork_rng(devices=[]):
        network = own_model(plugin, outputs, model.in_channels)
    if wrong := mismatches(tensors, network.state_dict()):
        raise ValueError(f"{weights} does not match {plugin.place}: {wrong}")
    network.load_state_dict(tensors)
    return cast(ResNet, network)


def outputs_of(tensors: Mapping[str, torch.Tensor], file: Path) -> int:
    """How many classes the network of a file's tensors tells apart. Raises ValueError where it has no classifier."""
    info = read_info(file)
    if info is not None and info.model.plugin:
        return len(info.classes)
    head = tensors.get("fc.weight")
    if head is None or head.dim() != 2 or not head.numel():
        raise ValueError(f"{file} has no classifier fc.weight, as torchvision calls it")
    if len(head) > _MOST_CLASSES:
        raise ValueError(f"{file} has a classifier of {len(head):,} classes, more than any data has")
    return len(head)


def unfit(tensors: Mapping[str, torch.Tensor], model: Model, classes: int | None) -> str:
    """How tensors are not a network's, before one is built that is as large as a file says; empty where they are.

    classes: None: of whatever classifier.
    """
    if sum(model.layers or ()) > len(tensors):
        return f"it has {len(tensors)} tensors"
    with torch.device("meta"):
        own = build_model(model, classes or 1).state_dict()
    left_out = () if classes else HEAD
    given, own = ({name: each[name] for name in each if name not in left_out} for each in (tensors, own))
    return mismatches(given, own, counts=False, here=model)
