"""A network built from a file of weights, and checked before it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from recipes.schema.model import Model
from recipes.text import plural
from resnet.net import ResNet, build_model
from resnet.state_dicts import mismatches
from resnet.weights_file import find_weights

_MOST_CLASSES = 1_000_000


def network_of(
    model: Model, classes: int | None, weights: Path, tell: Callable[[str], object] = lambda _: None
) -> ResNet:
    """A network on the CPU with weights from a file; torch's random numbers stay as they are.

    classes: outputs that the network must have; None: as many as the weights do. tell: is called with what the user
    should know of how another trainer's file was read.
    Raises ValueError where the weights are of another network, or cannot be read.
    """
    tensors, notes, _ = find_weights(weights, model)
    for note in notes:
        tell(f"{weights}: {note}")
    there = outputs_of(tensors, weights)
    if classes not in (None, there):
        raise ValueError(
            f"{weights} does not match this network: it is for {plural(there, 'class')}, and here are {classes}"
        )
    _check(tensors, model, there, weights)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        network = build_model(model, there)
    network.load_state_dict(tensors, strict=False)
    return network


def outputs_of(tensors: Mapping[str, torch.Tensor], file: Path) -> int:
    """How many classes the network of a file's tensors tells apart. Raises ValueError where it has no classifier."""
    head = tensors.get("fc.weight")
    if head is None or head.dim() != 2 or not head.numel():
        raise ValueError(f"{file} has no classifier fc.weight, as torchvision calls it")
    if len(head) > _MOST_CLASSES:
        raise ValueError(f"{file} has a classifier of {len(head):,} classes, more than any data has")
    return len(head)


def _check(tensors: Mapping[str, torch.Tensor], model: Model, classes: int, file: Path) -> None:
    """Raise ValueError where tensors are not a network's, before one is built that is as large as a file says."""
    wrong = f"it has {len(tensors)} tensors"
    if sum(model.layers or ()) <= len(tensors):
        with torch.device("meta"):
            wrong = mismatches(tensors, build_model(model, classes).state_dict(), counts=False)
    if wrong:
        raise ValueError(f"{file} does not match this network: {wrong}")
