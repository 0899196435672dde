"""What feeds a trainer: the batches of training and validation, those of the test, and whether they can be made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from accelerate import Accelerator

from recipes.schema.recipe import Recipe
from resnet.build import share_memory
from resnet.data.batches import Batch, Key, Prepared
from resnet.data.cache import DrawnBatches, check_room, fill
from resnet.data.encoded import micro_batches
from resnet.data.gpu_decode import check_gpu_decodes
from resnet.data.kept import kept_batches
from resnet.data.loader import Loader
from resnet.data.node_memory import NodeMemory
from resnet.data.order import Order
from resnet.data.region_decode import check_region_decoder
from resnet.data.sources.source import Source
from resnet.data.targets import Targets, in_rows, targets_of
from resnet.distill import Teacher
from resnet.last_evaluation import FinalTest
from resnet.ranks import together
from resnet.trainer import Trainer


def check_input(recipe: Recipe, train: Source, val: Source, accelerator: Accelerator) -> NodeMemory | None:
    """Memory to keep images in, None for none. Raises ValueError where they cannot be kept or decoded as asked."""
    if recipe.data.cache == "device":
        together(lambda: check_room(len(train), len(val), recipe.augment, accelerator.device))
    if recipe.data.decode == "gpu":
        together(lambda: check_gpu_decodes(accelerator.device))
    if recipe.data.decode == "region":
        together(check_region_decoder)
    return share_memory(recipe, train, val, accelerator.local_process_index)


def open_batches(
    trainer: Trainer,
    train: Source,
    val: Source,
    order: Order,
    memory: NodeMemory | None,
    workers: int,
    say: Callable[[str], None],
) -> list[Loader]:
    """Let the trainer's batches be made; returns the loaders whose workers are to be ended, more of them later."""
    recipe, loaders = trainer.recipe, []
    if targets_of(train) is not None:
        trainer.targets = Targets(train, val, trainer.device)
        train, val = in_rows(train), in_rows(val)

    def loader(batches: Prepared, keys: Iterable[Key]) -> Loader:
        loaders.append(Loader(batches, keys, trainer.device, workers, recipe.data.prefetch))
        return loaders[-1]

    def feed(batches: Prepared, look_up: Callable[[Iterator[Batch]], Iterator[Batch]] = iter) -> None:
        def made(key: Key) -> Batch:
            batch = next(look_up(iter(Loader(batches, [key], trainer.device, 0, recipe.data.prefetch))))
            return batch if trainer.targets is None else trainer.targets.look_up(batch)

        trainer.batches = look_up(iter(loader(batches, trainer.keys())))
        trainer.make = made

    def fill_cache() -> bool:
        say("data.cache=device: all images are decoded onto the device first")
        start = time.monotonic()
        for filled in fill(train, val, recipe.augment, loader, trainer.plan.micro_batch):
            if filled is not None:
                say(f"{filled.cache.bytes / 1e6:.0f} MB of images in {time.monotonic() - start:.1f} s")
                batches = DrawnBatches(filled.train, filled.val, order, recipe.augment, operations_on_device=True)
                feed(batches, filled.cache.look_up)
            elif trainer.hooks.stop_now():
                return False
        return True

    if recipe.data.cache == "device":
        trainer.prepare = fill_cache
    else:
        if memory is not None:
            size = memory.size / 1e6
            size = f"{size:.0f}" if size >= 10 else f"{size:.1f}"
            say(f"images are kept in memory as they are read: up to {size} MB on each machine")
        feed(kept_batches(recipe, train, val, order, trainer.device, memory))
    return loaders


def open_test(
    trainer: Trainer, train: Source, test: Source, order: Order, workers: int, loaders: list[Loader]
) -> FinalTest:
    """What the run is tested on at its end; its loader joins the others."""
    recipe, device = trainer.recipe, trainer.device
    prepared = micro_batches(recipe, in_rows(train), in_rows(test), order, device)

    def batches(keys: Iterable[Key]) -> Iterator[Batch]:
        loaders.append(Loader(prepared, keys, device, workers, recipe.data.prefetch))
        return iter(loaders[-1])

    return FinalTest(test, batches, None if targets_of(test) is None else Targets(train, test, device))


def beside_network(teacher: Teacher | None, weights: torch.Tensor | None, accelerator: Accelerator) -> dict[str, Any]:
    """What a trainer has beside its network: who teaches it, and the weights of the classes."""
    return {
        "teacher": teacher.network if teacher else None,
        "class_weights": None if weights is None else weights.to(accelerator.device),
    }
