"""`max_batch_per_device: auto`: the most images of one forward pass that a GPU's memory holds, found by trying."""

from __future__ import annotations

import gc
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from recipes.plan import Plan, make_plan, micro_batches
from recipes.schema.recipe import Recipe
from resnet.build import build_model_for, build_state
from resnet.data.batches import Batch, training_keys
from resnet.data.cache import bytes_needed
from resnet.data.order import Order
from resnet.data.sources.source import Source
from resnet.failure import is_out_of_memory
from resnet.loop import train_step
from resnet.ranks import least_of_ranks, together
from resnet.state import TrainState
from resnet.trainer import Hooks, Trainer

HEADROOM = 0.1
"""Share of the memory that is there which stays free: for a fragmented allocator, and copies of batches to come."""
_STEPS = 2
"""Of a try: from the second on the optimizer has its state."""


def fitted(
    plan: Plan, order: Order, train: Source, val: Source, accelerator: Accelerator, beside: dict[str, Any]
) -> tuple[Plan, str]:
    """The plan by the micro-batch that fits into all ranks' memory where the recipe wants it found, and a line on it.

    plan: by the largest that may be found, whose parts are all that are tried.
    beside: what the trainer has beside its network. Every rank calls it.
    """
    recipe, ranks = plan.recipe, accelerator.num_processes
    if recipe.max_batch_per_device != "auto":
        return plan, ""
    cached = bytes_needed(len(train), len(val), recipe.augment) if recipe.data.cache == "device" else 0
    classes, most = len(train.classes), plan.micro_batch
    size, told = together(lambda: largest_micro_batch(recipe, classes, accelerator, cached, beside, most))
    if (least := least_of_ranks(size)) < size:
        told += f"; of {least} into all ranks'"
    return make_plan(recipe, len(order), ranks, least), told


def largest_micro_batch(
    recipe: Recipe, classes: int, accelerator: Accelerator, reserved: int, beside: dict[str, Any], most: int
) -> tuple[int, str]:
    """The largest micro-batch whose training steps fit into this rank's memory, and a line on it; no rank is asked.

    On a CPU the largest that may be. reserved: bytes that the run will need beside it. beside: what the trainer has
    beside the network, as its teacher. most: the images that may be of one pass, of which parts are tried too.
    Raises ValueError where even the smallest does not fit.
    """
    share = recipe.batch_size // accelerator.num_processes
    which = "all of a device's" if most == share else "the most that all numbers of nodes share"
    if accelerator.device.type != "cuda":
        told = f"all {most} images of a device in one pass" if most == share else f"micro-batches of {most}, {which}"
        return most, f"max_batch_per_device=auto: on a CPU {told}"
    sizes = micro_batches(most, 1)
    fits, too_large = first_that_fits(recipe, classes, accelerator, sizes, reserved, beside)
    larger = f"{too_large} would not" if too_large else which
    return fits, f"max_batch_per_device=auto: micro-batches of {fits} fit into the GPU's memory, {larger}"


def first_that_fits(
    recipe: Recipe,
    classes: int,
    accelerator: Accelerator,
    sizes: list[int],
    reserved: int,
    beside: dict[str, Any],
) -> tuple[int, int | None]:
    """The first of some sizes in descending order that fits, and the one before it, which does not."""
    share = recipe.batch_size // accelerator.num_processes
    # A network to be thrown away. BatchNorm of all ranks would wait for those whose memory is too small.
    # What is unfrozen later is trained from the first step on, as it will take memory.
    model = recipe.model.model_copy(update={"sync_batchnorm": False, "unfreeze": {}})
    recipe = recipe.model_copy(
        update={"model": model, "compile": False, "recheck": None, "epochs": 1000.0, "max_steps": None}
    )
    network, _ = build_model_for(recipe, classes, pretrained=False)
    state = build_state(recipe, make_plan(recipe, recipe.batch_size, 1, recipe.batch_size), network, accelerator)
    held, too_large = torch.empty(reserved, dtype=torch.uint8, device=accelerator.device), None
    for size in sizes:
        room = _room(accelerator.device)
        trainer = _trainer(recipe, classes, accelerator, state, size, size < share, beside)
        try:
            fits = _steps_fit(trainer, room)
        finally:
            state.optimizer.zero_grad(set_to_none=True)
        if fits:
            del trainer, state, network, held
            _free(accelerator.device)
            return size, too_large
        too_large = size
    raise ValueError(
        f"max_batch_per_device=auto: not even {sizes[-1]} images of {_largest_size(recipe)} px fit into the GPU's "
        "memory: a smaller network, smaller images, or a free GPU is needed"
    )


def _trainer(
    recipe: Recipe,
    classes: int,
    accelerator: Accelerator,
    state: TrainState,
    micro_batch: int,
    accumulates: bool,
    beside: dict[str, Any],
) -> Trainer:
    """A trainer of steps of one micro-batch for each device, or of two where gradients wait for the second."""
    ranks, hooks = accelerator.num_processes, cast("Hooks", None)
    batch_size = micro_batch * ranks * (2 if accumulates else 1)
    plan = make_plan(recipe.model_copy(update={"batch_size": batch_size}), _STEPS * batch_size, ranks, micro_batch)
    state.step = 0
    trainer = Trainer(plan, accelerator, _Autocast(state.model, accelerator), state, classes, 0, hooks, **beside)
    size, channels = _largest_size(recipe), recipe.augment.channels
    images = torch.zeros(micro_batch, size, size, channels, dtype=torch.uint8).permute(0, 3, 1, 2)
    keys = (key for step in range(_STEPS) for key in training_keys(plan, trainer.rank, step))
    trainer.batches = (Batch(key, images, torch.zeros(micro_batch, dtype=torch.int64), None, []) for key in keys)
    return trainer


class _Autocast(nn.Module):
    """A network in the run's precision, without DDP: each rank tries on its own."""

    def __init__(self, network: nn.Module, accelerator: Accelerator) -> None:
        super().__init__()
        self.network, self.accelerator = network, accelerator

    def forward(self, images: Tensor) -> Tensor:
        with self.accelerator.autocast():
            return self.network(images)


def _steps_fit(trainer: Trainer, room: float) -> bool:
    """Whether training steps go through and leave some of `room` bytes free."""
    try:
        for _ in range(_STEPS):
            train_step(trainer)
            trainer.state.step += 1
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
            return torch.cuda.max_memory_reserved(trainer.device) <= room
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _room(device: torch.device) -> float:
    """Bytes that this process may take of the device's memory; what it no longer needs is given back before."""
    _free(device)
    if device.type != "cuda":
        return float("inf")
    torch.cuda.reset_peak_memory_stats(device)
    return (1 - HEADROOM) * (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _largest_size(recipe: Recipe) -> int:
    return max((corner.size for corner in recipe.augment.progressive), default=recipe.augment.train_size)
