"""What the loop works with: the network, its state, the batches, and what happens around the steps."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from recipes.plan import Plan
from resnet.batchnorm import StatisticsOfStep
from resnet.data.batches import Batch, Key, training_keys, validation_keys
from resnet.data.targets import Targets
from resnet.freezing import frozen_parts
from resnet.inference import input_dtype
from resnet.net import has_randomness
from resnet.plugins import own_loss
from resnet.process.stages import reached
from resnet.state import TrainState
from resnet.stragglers import StepTimes

_MOST_NAMED = 20
"""Unreadable images that a rank names as it meets them."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message is for the user."""


class Hooks(Protocol):
    """What happens around the steps. Every rank calls each hook at the same step."""

    def log(self, row: dict[str, Any]) -> None:
        """A line for the log."""

    def after_step(self) -> bool:
        """Save what is due; True asks to stop here."""
        ...

    def tell(self, line: str) -> None:
        """A line for whoever looks on."""

    def before_evaluation(self) -> None: ...

    def after_evaluation(self, result: dict[str, Any], best: bool) -> None: ...

    def stop_now(self) -> bool:
        """Whether to abandon an evaluation."""
        ...


@dataclass
class Trainer:
    """What the loop works with. `network` is the model as DDP and torch.compile wrapped it."""

    plan: Plan
    accelerator: Accelerator
    network: nn.Module
    state: TrainState
    classes: int
    val_samples: int
    hooks: Hooks
    batches: Iterator[Batch] = field(default_factory=lambda: iter(()))
    prepare: Callable[[], bool] = lambda: True
    """What is to be done before the first batch; False where a hook asked to stop before it was done."""
    targets: Targets | None = None
    """Of images with several labels."""
    teacher: nn.Module | None = None
    """Answers the images too, for the network to learn from; see `resnet.distill`."""
    class_weights: torch.Tensor | None = None
    """Of the classes in the loss, on the device (classes,); None: all weigh the same."""
    make: Callable[[Key], Batch] | None = None
    """Makes one of the micro-batches of training once more, here and now, as `next_batch` gives it."""
    rechecks: bool = True
    """Whether `resnet.recheck` compares: not where this machine never computes the same twice."""
    stopped_early: str | None = None
    """Why the run ends before its last step; None: it does not."""
    broken: dict[str, None] = field(default_factory=dict)
    """Images this rank could not read, each with the reason, in the order they were met."""
    times: StepTimes | None = None
    """Of several ranks, what this one's steps take."""
    waited: float = 0.0
    """Seconds spent waiting for data since the last line of the log."""

    def __post_init__(self) -> None:
        self.device = self.accelerator.device
        self.rank = self.accelerator.process_index
        self.recipe = self.plan.recipe
        self.parameters = [p for p in self.state.model.parameters() if p.requires_grad]
        named = self.state.model.named_parameters()
        self.backbone = [p for name, p in named if p.requires_grad and not name.startswith("fc.")]
        self.input_dtype = input_dtype(self.recipe, self.accelerator.mixed_precision)
        # Of the user's own nobody knows.
        self.random_layers = has_randomness(self.state.model) or self.recipe.model.plugin is not None
        # Until its first answer.
        self.unchecked = self.recipe.model.plugin
        own = self.recipe.plugins.loss
        self.own_loss = own_loss(own) if own else None
        self.set_training_mode()

    def set_training_mode(self) -> None:
        """Put the network into training mode, but for what `model.unfreeze` keeps frozen in the epoch of the step.

        The gradients of `frozen_parameters` are for nobody: a step without them makes no moments and no decay.
        """
        state = self.state
        state.model.train()
        frozen = frozen_parts(state.model, self.recipe.model.unfreeze, state.step // self.plan.steps_per_epoch)
        for part in frozen:
            part.eval()
        self.frozen_parameters = [parameter for part in frozen for parameter in part.parameters()]
        self.statistics = StatisticsOfStep(state.model) if self.plan.accumulation > 1 else None

    def keys(self) -> Iterator[Key]:
        """All the micro-batches this rank will ask for from the state's step on, evaluations included."""
        plan, start = self.plan, self.state.step
        if self.evaluation_is_due:
            yield from self.validation_keys()
        for step in range(start, plan.end_step):
            yield from training_keys(plan, self.rank, step)
            if plan.rechecks(step):
                yield [*training_keys(plan, (self.rank + 1) % plan.world_size, step)][-1]
            if plan.evaluates_after(step + 1):
                yield from self.validation_keys()

    def validation_keys(self, samples: int | None = None) -> list[Key]:
        """Of this rank. samples: images to evaluate over all ranks; None: those of validation."""
        ranks, size = self.accelerator.num_processes, self.recipe.augment.val_size
        return list(
            validation_keys(
                self.val_samples if samples is None else samples, self.eval_batch_size, ranks, self.rank, size
            )
        )

    @property
    def evaluation_is_due(self) -> bool:
        return self.plan.evaluates_after(self.state.step) and self.state.evaluated < self.state.step

    @property
    def eval_batch_size(self) -> int:
        return self.recipe.eval.batch_size or self.plan.micro_batch

    def most_validation_batches(self, samples: int) -> int:
        """The number on the rank that has the most, so that all ranks can ask one another whether to go on."""
        return -(-samples // (self.eval_batch_size * self.accelerator.num_processes))

    def next_batch(self, batches: Iterator[Batch] | None = None) -> Batch:
        """The next of the batches; None: of those of training and validation."""
        start = time.perf_counter()
        batch = next(self.batches if batches is None else batches)
        reached("batch")
        if self.targets is not None:
            batch = self.targets.look_up(batch)
        self.waited += time.perf_counter() - start
        for image in batch.broken:
            if image not in self.broken and len(self.broken) < _MOST_NAMED:
                print(f"unreadable image: {image}", file=sys.stderr)
            self.broken[image] = None
        return batch

    def examples_of_broken(self) -> str:
        return "".join(f"\n  {image}" for image in list(self.broken)[:5]) or " met by other ranks"
