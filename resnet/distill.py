"""Distillation: a trained network, the teacher, answers the very images that the network in training is given.

The same images, mixed and cropped alike, is what Beyer et al. 2022 (arXiv:2106.05237) call consistent teaching.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from recipes.schema.model import name_of_model
from recipes.schema.recipe import Recipe
from recipes.schema.training import Distill
from recipes.text import listed, plural
from resnet.checkpoint.commit import sha256_of
from resnet.checkpoint.resume import Start
from resnet.pretrained import find_file, order_of, prepared_otherwise
from resnet.trained_network import network_of
from resnet.weights_file import WeightsInfo, read_info, refuse_own_code


class Teacher(NamedTuple):
    """A network to learn from."""

    network: nn.Module
    """On the device, in evaluation mode, without gradients: normalised images (N, 3, H, W) -> logits float32 (N,
    classes), the classes in the order of the training data."""
    digest: str
    """SHA-256 of its file, which is another network's where it changes."""
    note: str
    """What the user should know of it, in a line."""


def distillation_loss(
    own: torch.Tensor, logits: torch.Tensor, teacher: torch.Tensor, settings: Distill
) -> torch.Tensor:
    """(1 - weight) * own + weight * T^2 * KL(softmax(teacher / T) || softmax(logits / T)), the mean over the images.

    own: the recipe's loss. logits, teacher: float32 (N, classes). T: the temperature, whose square keeps the gradient's
    size as the temperature changes (Hinton et al. 2015, arXiv:1503.02531, section 2).
    """
    told = (teacher / settings.temperature).log_softmax(1)
    learnt = (logits / settings.temperature).log_softmax(1)
    divergence = F.kl_div(learnt, told, reduction="batchmean", log_target=True)
    return (1 - settings.weight) * own + settings.weight * settings.temperature**2 * divergence


def load_teacher(recipe: Recipe, classes: Sequence[str], start: Start, accelerator: Accelerator) -> Teacher | None:
    """The network that `distill.teacher` means, ready to be asked; None where the recipe has none.

    classes: names in the order of the data. Raises ValueError where there is no such network, where it cannot teach
    this one, and where it is not the one that the run has learnt from until now.
    """
    if recipe.distill is None:
        return None
    source = recipe.distill.teacher
    try:
        file = find_file(source, recipe.run.root)
        assert file is not None, "the recipe refuses tags"
        info = _described(file)
        _check_input(info, recipe)
        network = network_of(info.model, len(info.classes), file)
        said = _put_in_order(network, info.classes, list(classes))
        with file.open("rb") as stream:
            digest = sha256_of(stream)
        _check_same(digest, file, start)
    except (ValueError, OSError) as error:
        raise ValueError(f"distill.teacher={source}: {error}") from error
    told = f"learns from {file} ({name_of_model(info.model)}{said})"
    settings = f"weight {recipe.distill.weight:g}, temperature {recipe.distill.temperature:g}"
    return Teacher(_on_device(network, recipe, accelerator), digest, f"{told}: {settings}")


def _described(file: Path) -> WeightsInfo:
    info = read_info(file)
    if info is None:
        raise ValueError(
            f"{file} does not say which network it is of, nor its classes: give a run, or weights that one left "
            "(docs/distill.md says how a run is made of another program's)"
        )
    refuse_own_code(info, file)
    if info.loss not in ("cross_entropy", "focal"):
        raise ValueError(f"{file} was trained with loss={info.loss}: its outputs are not for a softmax")
    return info


def _check_input(info: WeightsInfo, recipe: Recipe) -> None:
    if differing := prepared_otherwise(info, recipe.augment, ("mean", "std")):
        raise ValueError(f"{differing[0]}: both networks see the same images, so train with the teacher's")


def _put_in_order(network: nn.Module, there: list[str], here: list[str]) -> str:
    """Give a network's outputs the order of the classes here, and say so where it was another."""
    if there == here:
        return ""
    order = order_of(there, here)
    if not order:
        counts = f"{plural(len(there), 'class')} there ({listed(there, 3)}), {len(here)} here ({listed(here, 3)})"
        raise ValueError(f"it tells other classes apart: {counts}")
    with torch.no_grad():
        for parameter in network.fc.parameters():  # pyright: ignore[reportAttributeAccessIssue]
            parameter.copy_(parameter[order])
    return ", its classes put in this order"


def _check_same(digest: str, file: Path, start: Start) -> None:
    before = start.rest.get("teacher", digest)
    if not start.is_new and before != digest:
        raise ValueError(
            f"{file} is not the file that {start.run_dir} has learnt from until now: put that one back "
            f"(RUN@step-N names one that stays), or start a new run from its checkpoint: resume={start.run_dir} "
            "run.name=NEW"
        )


def _on_device(network: nn.Module, recipe: Recipe, accelerator: Accelerator) -> nn.Module:
    """As the network in training is wrapped, but for what trains it."""
    memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
    network = network.eval().requires_grad_(False)
    network = network.to(device=accelerator.device, memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    network = accelerator.prepare_model(network, evaluation_mode=True)
    return torch.compile(network) if recipe.compile else network  # pyright: ignore[reportReturnType]
