"""`resnet doctor`: what reading, decoding, augmenting, copying and training of a recipe give on this machine."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from recipes.plan import make_plan
from recipes.schema.recipe import Recipe
from resnet.build import build_accelerator, build_data, build_model_for, build_order, build_state, wrap
from resnet.data.batches import MicroBatches, training_keys
from resnet.data.encoded import micro_batches
from resnet.data.loader import Loader, workers_per_rank
from resnet.data.order import Order
from resnet.data.region_decode import check_region_decoder
from resnet.data.sources.source import Source
from resnet.failure import out_of_memory
from resnet.loop import train_step
from resnet.opening import device_name
from resnet.pretrained import shaped_as_weights
from resnet.process.environment import cores_of_rank
from resnet.tools.doctor_loader import LoaderTimer, copy_rate, keys_of
from resnet.tools.doctor_stages import Sampled, Stages, time_prepared, time_stages
from resnet.trainer import Trainer

SECONDS = 3.0
"""For the stages of a worker, the loader and the steps each, about."""
_COPIED = 32
"""Images of the batch whose copy is timed."""
_LEAST = 2
"""Images of the smallest step."""


class Examined(NamedTuple):
    """What one rank of this machine gives, in images a second where nothing else is said."""

    recipe: Recipe
    device: str
    precision: str
    ranks: int
    """On this machine: one for each of its GPUs."""
    cores: int
    """Of the rank."""
    workers: int
    training_images: int
    stages: Stages
    sampled: Sampled
    prepared: dict[str, float]
    """By options of `resnet prepare`: a worker, of what they make of the images; empty where these are no files."""
    loader: float
    """All of the rank's workers together."""
    kept: bool
    """Whether the loader's images were kept in memory or on the device before."""
    copy: float | None
    """To the GPU; None where training is on a CPU."""
    step: float
    """What the model trains on."""
    micro_batch: int
    """Images that it was timed with."""

    @property
    def cores_wanted(self) -> float:
        """Cores, at the speed that the workers have beside one another, that would feed the model."""
        return self.step * min(max(1, self.workers), self.cores) / self.loader


def examine(recipe: Recipe, seconds: float = SECONDS) -> Examined:
    """Measure what a recipe's parts give here, by the functions that training calls; nothing is written.

    seconds: for each of three parts, about. Raises ValueError as the start of a run does.
    """
    recipe, _ = shaped_as_weights(recipe)
    train, val = build_data(recipe)
    order = build_order(recipe, train)
    plan = make_plan(recipe, len(order), 1)
    accelerator = build_accelerator(recipe)
    if recipe.data.decode == "region":
        check_region_decoder()
    on_gpu, size = accelerator.device.type == "cuda", plan.image_size(0)
    ranks = torch.cuda.device_count() if on_gpu else 1
    cores = max(1, cores_of_rank() // ranks)
    asked = recipe.data.num_workers
    workers = min(workers_per_rank(asked), cores) if asked is None else asked
    batches = micro_batches(recipe, train, val, order, accelerator.device)
    with _one_thread():
        stages, sampled = time_stages(batches, size, seconds, on_gpu)
        prepared = time_prepared(batches, size, stages.read, on_gpu)
        timer = LoaderTimer(recipe, train, val, accelerator.device, workers, seconds)
        loader, kept = timer.rate(stages, plan.micro_batch, size)
        few = next(keys_of(order, _COPIED, size))
        copy = copy_rate(batches[few], accelerator.device) if on_gpu else None
    step, images = step_rate(_Steps(recipe, train, order, batches, accelerator), plan.micro_batch, seconds)
    here = device_name(accelerator.device), accelerator.mixed_precision, ranks, cores, workers
    return Examined(recipe, *here, len(train), stages, sampled, prepared, loader, kept, copy, step, images)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """As in a worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Steps:
    """Real training steps of one micro-batch, by a new network without teacher, over and over on the same images."""

    def __init__(
        self, recipe: Recipe, train: Source, order: Order, batches: MicroBatches, accelerator: Accelerator
    ) -> None:
        self.recipe = recipe.model_copy(update={"compile": False})
        self.order, self.batches, self.accelerator, self.classes = order, batches, accelerator, len(train.classes)
        model, _ = build_model_for(recipe, self.classes, pretrained=False)
        self.state = build_state(self.recipe, make_plan(recipe, len(order), 1), model, accelerator)
        self.network = wrap(self.recipe, make_plan(recipe, len(order), 1), self.state.model, accelerator, 0)

    def of(self, images: int) -> Trainer:
        """Steps of so many images, which lie on the device."""
        plan = make_plan(self.recipe.model_copy(update={"batch_size": images}), len(self.order), 1, images)
        hooks: Any = None
        trainer = Trainer(plan, self.accelerator, self.network, self.state, self.classes, 0, hooks)
        loader = Loader(self.batches, training_keys(plan, 0, 0), self.accelerator.device, 0, 1)
        trainer.batches = itertools.cycle(list(loader))
        return trainer

    def seconds(self, trainer: Trainer, least: float = 0.0) -> float:
        """What a step takes, on average over so many seconds; the step before these warms up."""
        train_step(trainer)
        begin, steps = self._now(), 0
        while (spent := self._now() - begin) < least or not steps:
            train_step(trainer)
            steps += 1
        return spent / steps

    def _now(self) -> float:
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize(self.accelerator.device)
        return time.perf_counter()


def step_rate(steps: _Steps, micro_batch: int, seconds: float) -> tuple[float, int]:
    """Images a second that training steps of a micro-batch take, and its images: on a CPU fewer, where it is slow."""
    images = micro_batch
    if steps.accelerator.device.type == "cpu":
        one = steps.seconds(steps.of(_LEAST)) / _LEAST
        images = max(_LEAST, min(micro_batch, int(seconds / 2 / one)))
        if images == _LEAST:
            return 1 / one, images
    try:
        return images / steps.seconds(steps.of(images), seconds), images
    except torch.cuda.OutOfMemoryError as error:
        raise ValueError(out_of_memory(error, micro_batch)) from error
