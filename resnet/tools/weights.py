"""A trained network and images to run it on, outside of training: what evaluating and predicting share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from recipes.schema.model import Model
from recipes.schema.recipe import Recipe
from resnet.data.batches import Batch, validation_keys
from resnet.data.encoded import micro_batches
from resnet.data.loader import Loader, workers_per_rank
from resnet.data.order import Order
from resnet.data.sources.banded import of_channels
from resnet.data.sources.source import Source
from resnet.trained_network import network_of
from resnet.weights_file import read_info, refuse_own_code

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def load_network(
    recipe: Recipe,
    classes: int | None,
    weights: Path,
    device: torch.device,
    tell: Callable[[str], object] = lambda _: None,
) -> nn.Module:
    """The recipe's network on the device, with weights from a file, to be evaluated.

    classes: outputs that the network must have; None: as many as the weights do. tell: is called with what the user
    should know of how another trainer's file was read.
    Raises ValueError where the weights are of another network, or cannot be read.
    """
    network = network_of(recipe.model, classes, weights, tell)
    memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
    return network.eval().to(device=device, memory_format=memory_format)  # pyright: ignore[reportCallIssue]


def outputs_of(network: nn.Module, model: Model, classes: Sequence[str]) -> int:
    """How many classes a network tells apart. classes: of its weights, where they name them."""
    return len(classes) if model.plugin else network.get_parameter("fc.weight").shape[0]


def load_alone(weights: Path, recipe: Recipe | None = None) -> nn.Module:
    """The network of a weights file on the CPU, to be evaluated: as the file itself says, or as the recipe does.

    Raises ValueError where neither does, or where they do not agree.
    """
    info = read_info(weights)
    if info is None and recipe is None:
        raise ValueError(f"{weights} does not say which network it is of: give recipe= (a recipe, or its name)")
    if recipe is None and info is not None:
        refuse_own_code(info, weights)
    model = recipe.model if recipe is not None else info.model  # pyright: ignore[reportOptionalMemberAccess]
    return network_of(model, None, weights).eval()


def batches_of(
    source: Source, recipe: Recipe, batch_size: int, device: torch.device, rank: int = 0, ranks: int = 1
) -> Iterator[Batch]:
    """The images of a source in order, as the recipe evaluates them, decoded by worker processes ahead of use.

    Those that cannot be read are left out of a batch, which names them. Of several ranks each takes its own batches.
    """
    source = of_channels(source, recipe.model.in_channels, recipe.data.pixel_max)
    keys = list(validation_keys(len(source), batch_size, ranks, rank, recipe.augment.val_size))
    workers = max(min(workers_per_rank(recipe.data.num_workers), len(keys) - 1), 0)
    order = Order(source.labels, recipe.seed, batch_size)
    made = micro_batches(recipe, source, source, order, device)
    loader = Loader(made, keys, device, workers, recipe.data.prefetch)
    try:
        yield from loader
    finally:
        loader.end(ask=True)


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
