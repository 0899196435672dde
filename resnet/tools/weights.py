"""A trained network and images to run it on, outside of training: what evaluating and predicting share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from recipes.schema.recipe import Recipe
from recipes.text import listed
from resnet.data.batches import Batch, MicroBatches, validation_keys
from resnet.data.loader import Loader, workers_per_rank
from resnet.data.order import Order
from resnet.data.sources.registry import Source
from resnet.net import build_model
from resnet.weights_file import check_fits, read_info, read_weights

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def load_network(recipe: Recipe, classes: int | None, weights: Path, device: torch.device) -> nn.Module:
    """The recipe's network on the device, with weights from a file, to be evaluated.

    classes: outputs that the network must have; None: as many as the weights do.
    Raises ValueError where the weights are of another network, or cannot be read.
    """
    if (info := read_info(weights)) is not None:
        check_fits(info, recipe.model, None, str(weights))
    tensors = read_weights(weights)
    if classes is None:
        if "fc.weight" not in tensors:
            raise ValueError(f"{weights} has no classifier fc.weight, as torchvision calls it")
        classes = len(tensors["fc.weight"])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        network = build_model(recipe.model, classes)
    _put(tensors, network, weights)
    memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
    return network.eval().to(device=device, memory_format=memory_format)  # pyright: ignore[reportCallIssue]


def _put(tensors: dict[str, torch.Tensor], network: nn.Module, file: Path) -> None:
    """Load the tensors of a file into the network, all of them. Raises ValueError."""
    own = network.state_dict()
    # Weights from before torch 0.4.1 have no count of batches, and nothing here needs it.
    counts = {name for name in own if name.endswith("num_batches_tracked")}
    wrong = sorted((own.keys() ^ tensors.keys()) - counts)
    wrong = wrong or [name for name in own if name not in counts and own[name].shape != tensors[name].shape]
    if {*wrong} == {"fc.weight", "fc.bias"} and "fc.weight" in tensors:
        here, there = len(own["fc.weight"]), len(tensors["fc.weight"])
        raise ValueError(f"{file} does not match this network: it is for {there} classes, and there are {here} here")
    if wrong:
        raise ValueError(f"{file} does not match this network: {listed(wrong, 4)}")
    network.load_state_dict(tensors, strict=False)


def batches_of(source: Source, recipe: Recipe, batch_size: int, device: torch.device) -> Iterator[Batch]:
    """The images of a source in order, as the recipe evaluates them, decoded by worker processes ahead of use.

    Those that cannot be read are left out of a batch, which names them.
    """
    keys = list(validation_keys(len(source), batch_size, 1, 0, recipe.augment.val_size))
    workers = min(workers_per_rank(recipe.data.num_workers), len(keys) - 1)
    order = Order(source.labels, recipe.seed, batch_size)
    loader = Loader(MicroBatches(source, source, order, recipe.augment), keys, device, workers, recipe.data.prefetch)
    try:
        yield from loader
    finally:
        loader.end()


@contextlib.contextmanager
def own_settings(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Compute as in training, and leave torch in this process as it was: its random numbers, device and kernels."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
            cudnn.benchmark, cudnn.deterministic = not recipe.deterministic, recipe.deterministic
        try:
            yield
        finally:
            if device.type == "cuda":
                cudnn.benchmark, cudnn.deterministic = before


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context of a forward pass. precision: no, bf16 or fp16."""
    dtype = _AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)
