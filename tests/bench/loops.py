"""The training loops that are compared: the same net, batches and arithmetic, and one optimizer step a call.

`bare` is the shortest honest loop of PyTorch; `bare_features` adds what ours and its peers do in a step (clipping, an
average of the weights, measurements); `ours` is the real one (tests.bench.ours), the rest are in tests.bench.peers.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib.util
import itertools
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import CosineAnnealingLR

from recipes.schema.model import Model
from resnet.net import build_model

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, on a scale of 0 to 1."""

NextBatch = Callable[[], tuple[Tensor, Tensor]]
"""Gives uint8 images (N, 3, H, W) and int64 labels (N,), on the device or in pinned memory."""
Net = Mapping[str, Any] | Callable[[int], nn.Module]
T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """What is trained, alike in every loop. The learning rate falls as half a cosine over `total_steps`."""

    net: Net
    """Keys of a recipe's `model`; or a function that makes a net for so many classes."""
    classes: int = 10
    batch_size: int = 8
    size: int = 32
    """Height and width of the images in pixels."""
    device: str = "cpu"
    precision: Literal["no", "bf16"] = "no"
    channels_last: bool = True
    compile: bool = False
    log_every: int = 50
    """Steps from one reading of the measurements to the next, where a loop does not read them at every step."""
    total_steps: int = 100_000
    """More than any bench makes: no loop comes to the end of an epoch."""
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-5
    """Not of norms and biases, except in `bare`, which has one group."""
    clip: float = 1.0
    """Largest L2 norm of the gradient."""
    ema_decay: float = 0.999
    seed: int = 0

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def build(self) -> nn.Module:
        """The net with the seed's weights, on the CPU."""
        torch.manual_seed(self.seed)
        return self.net(self.classes) if callable(self.net) else build_model(Model(**self.net), self.classes)

    def placed(self) -> nn.Module:
        """The net on the device, in training mode."""
        model = self.build().to(device=self.device, memory_format=self.memory_format)  # pyright: ignore[reportCallIssue]
        return model.train()

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The net as it is called: DDP where there is a process group, torch.compile where it is asked for."""
        network = model
        if dist.is_initialized():
            with warnings.catch_warnings():
                # torch renames the argument in 2.15 and keeps the old name, which older versions need.
                warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
                network = DistributedDataParallel(model, gradient_as_bucket_view=True, broadcast_buffers=False)
        return torch.compile(network) if self.compile else network  # pyright: ignore[reportReturnType]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "no":
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)


class Loop:
    """A loop over one setting: `model` is the net it trains, `average` the average of its weights, if told."""

    def __init__(
        self, model: nn.Module, step: Callable[[], object] | None = None, average: nn.Module | None = None
    ) -> None:
        self.model, self._step, self.average = model, step, average

    def __call__(self) -> None:
        """Make one optimizer step."""
        assert self._step is not None
        self._step()

    def block(self, steps: int, mark: Callable[[], object] = lambda: None) -> None:
        """Make so many steps; `mark` is called right before the first and right after the last one."""
        mark()
        for _ in range(steps):
            self()
        mark()

    def close(self) -> None:
        """End what runs beside the loop."""


class TinyNet(nn.Module):
    """Five convolutions in two residual blocks: milliseconds a step, so that the host's work is seen beside it."""

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        self.stem = self._layer(3, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(self._layer(width, width), nn.ReLU(inplace=True), self._layer(width, width)) for _ in range(2)
        )
        self.fc = nn.Linear(width, classes)

    @staticmethod
    def _layer(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.fc(x.mean((2, 3)))


def resident_batches(setting: Setting, count: int = 4) -> NextBatch:
    """So many random batches of the setting's seed on its device, over and over."""
    generator = torch.Generator(setting.device).manual_seed(setting.seed)
    shape = (setting.batch_size, 3, setting.size, setting.size)
    batches = []
    for _ in range(count):
        images = torch.randint(256, shape, generator=generator, dtype=torch.uint8, device=setting.device)
        labels = torch.randint(setting.classes, shape[:1], generator=generator, device=setting.device)
        batches.append((images.contiguous(memory_format=setting.memory_format), labels))
    return itertools.cycle(batches).__next__


def input_on_device(setting: Setting) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The usual way of uint8 images to the net's float input on the device: cast, then two operations in place."""
    shift, scale = (torch.tensor(v, device=setting.device).mul(255).view(1, 3, 1, 1) for v in (MEAN, STD))

    def prepare(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images = images.to(setting.device, non_blocking=True)
        if setting.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images.float().sub_(shift).div_(scale), labels.to(setting.device, non_blocking=True)

    return prepare


def least_input(setting: Setting) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The same with the least that PyTorch can do: one pass, to the type that the net computes in."""
    std = 255 * torch.tensor(STD, device=setting.device).view(1, 3, 1, 1)
    shift = -255 * torch.tensor(MEAN, device=setting.device).view(1, 3, 1, 1) / std
    dtype = torch.float32 if setting.precision == "no" else torch.bfloat16

    def prepare(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images = images.to(setting.device, non_blocking=True).contiguous(memory_format=setting.memory_format)
        given = torch.addcmul(shift, images, 1 / std, out=torch.empty_like(images, dtype=dtype))
        return given, labels.to(setting.device, non_blocking=True)

    return prepare


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights of convolutions and the classifier; then biases and all of the norms, without weight decay."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def sgd(setting: Setting, params: Any) -> torch.optim.Optimizer:
    fused = True if torch.device(setting.device).type == "cuda" else None
    return torch.optim.SGD(params, setting.lr, setting.momentum, weight_decay=setting.weight_decay, fused=fused)


def bare(setting: Setting, next_batch: NextBatch) -> Loop:
    """The shortest honest loop: nothing is clipped, averaged or measured."""
    model, prepare = setting.placed(), least_input(setting)
    network = setting.wrapped(model)
    optimizer = sgd(setting, model.parameters())
    scheduler = CosineAnnealingLR(optimizer, setting.total_steps)

    def step() -> None:
        images, labels = prepare(*next_batch())
        with setting.autocast():
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)

    return Loop(model, step)


def bare_features(setting: Setting, next_batch: NextBatch) -> Loop:
    """Bare, and by hand what ours does in a step: clipping, an average, sums of loss and hits read every so often."""
    model, prepare = setting.placed(), least_input(setting)
    network = setting.wrapped(model)
    optimizer = sgd(setting, parameter_groups(model, setting.weight_decay))
    scheduler = CosineAnnealingLR(optimizer, setting.total_steps)
    average = Average(model, setting.ema_decay)
    loss_sum, right = (torch.zeros((), device=setting.device) for _ in range(2))
    rows: list[tuple[float, float]] = []

    def step() -> None:
        images, labels = prepare(*next_batch())
        with setting.autocast():
            logits = network(images)
            loss = F.cross_entropy(logits, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), setting.clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        loss_sum.add_(loss.detach())
        right.add_((logits.argmax(1) == labels).sum())
        if average.updates % setting.log_every == 0:
            images_seen = setting.log_every * setting.batch_size
            rows.append((loss_sum.item() / setting.log_every, 100 * right.item() / images_seen))
            loss_sum.zero_()
            right.zero_()

    return Loop(model, step, average.module)


class Average:
    """An exponential moving average by hand: first a copy of the model, then one operation over all its tensors."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = copy.deepcopy(model).eval(), decay, 0
        pairs = zip(self.module.state_dict().values(), model.state_dict().values(), strict=True)
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._averages, self._current = [a for a, _ in floats], [c for _, c in floats]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self._averages, self._current, 1 - self.decay if self.updates else 1.0)
        self.updates += 1


def ours(setting: Setting, next_batch: NextBatch) -> Loop:
    """The real trainer, with the hooks of a real run."""
    from tests.bench.ours import Ours

    return Ours(setting, next_batch)


def _peer(name: str) -> Callable[[Setting, NextBatch], Loop]:
    def make(setting: Setting, next_batch: NextBatch) -> Loop:
        from tests.bench import peers

        return getattr(peers, name)(setting, next_batch)

    return make


LOOPS: dict[str, Callable[[Setting, NextBatch], Loop]] = {
    "bare": bare,
    "bare_again": bare,
    "bare_features": bare_features,
    "ours": ours,
    **{name: _peer(name) for name in ("timm", "torchvision", "accelerate", "lightning")},
}
"""`bare_again` is the very same as `bare`: how far the two are apart says what a difference is worth."""


def installed(names: list[str]) -> tuple[list[str], dict[str, str]]:
    """Those of the loops that can run here; and why the others cannot."""
    missing = {name: f"{name} is not installed" for name in names if name in ("timm", "lightning")}
    missing = {name: why for name, why in missing.items() if importlib.util.find_spec(name) is None}
    return [name for name in names if name not in missing], missing


def in_turns(loops: Mapping[str, T], rounds: int, seed: int = 0) -> Iterator[tuple[str, T, bool]]:
    """What takes turns, in shuffled order in each round, and whether it counts: the first round only warms up."""
    order, shuffle = list(loops), random.Random(seed).shuffle
    gc.collect()
    gc.freeze()
    try:
        for number in range(rounds + 1):
            shuffle(order)
            for name in order:
                gc.collect()
                yield name, loops[name], number > 0
    finally:
        gc.unfreeze()


def make_loop(name: str, setting: Setting, next_batch: NextBatch | None = None) -> Loop:
    """A loop by its name; without `next_batch` over four random batches that lie on the device."""
    return LOOPS[name](setting, next_batch or resident_batches(setting))
