"""Loops of other projects, made of their public parts as their documentation and scripts put them together.

Where a project has clipping, an average of the weights or measurements, they are on, as in `loops.bare_features`; what
it leaves to the user is done by hand. No checkpoint is due in any of them.
"""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.bench.loops import Loop, NextBatch, Setting, input_on_device, parameter_groups, sgd

EMA_EVERY = 32
"""Steps from one update of the average to the next in torchvision's script, by default."""
WARM_STEPS = 5
"""Steps of each `fit` of Lightning before the clock is read."""


def timm(setting: Setting, next_batch: NextBatch) -> Loop:
    """timm's train.py: meters fed with `loss.item()` each step, ModelEmaV3, a schedule told of every update.

    In bf16 it has no scaler, and clips through `dispatch_clip_grad`.
    """
    from timm.models import model_parameters
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import AverageMeter, ModelEmaV3, dispatch_clip_grad

    model, prepare = setting.placed(), input_on_device(setting)
    network = setting.wrapped(model)
    optimizer = create_optimizer_v2(
        model, opt="momentum", lr=setting.lr, weight_decay=setting.weight_decay, momentum=setting.momentum
    )
    scheduler, _ = create_scheduler_v2(
        optimizer, num_epochs=1, warmup_lr=0.0, step_on_epochs=False, updates_per_epoch=setting.total_steps
    )
    average = ModelEmaV3(model, decay=setting.ema_decay)
    criterion = nn.CrossEntropyLoss()
    losses, update_time, data_time = AverageMeter(), AverageMeter(), AverageMeter()
    updates, end = 0, time.time()

    def step() -> None:
        nonlocal updates, end
        images, labels = prepare(*next_batch())
        data_time.update(time.time() - end)
        with setting.autocast():
            loss = criterion(network(images), labels)
        loss.backward()
        dispatch_clip_grad(model_parameters(model, exclude_head=False), value=setting.clip, mode="norm")
        optimizer.step()
        losses.update(loss.item(), images.size(0))
        updates += 1
        optimizer.zero_grad()
        average.update(model, step=updates)
        now = time.time()
        update_time.update(now - end)
        if updates % setting.log_every == 0:
            rates = [group["lr"] for group in optimizer.param_groups]
            _text(loss=losses.val, mean=losses.avg, s=update_time.avg, wait=data_time.avg, lr=sum(rates) / len(rates))
        scheduler.step_update(num_updates=updates, metric=losses.avg)
        end = time.time()

    return Loop(model, step)


def torchvision(setting: Setting, next_batch: NextBatch) -> Loop:
    """torchvision's reference script: loss, top-1 and top-5 by `.item()` each step; its schedule moves by epochs."""
    model, prepare = setting.placed(), input_on_device(setting)
    network = setting.wrapped(model)
    optimizer = sgd(setting, parameter_groups(model, setting.weight_decay))
    criterion, keep = nn.CrossEntropyLoss(), setting.ema_decay
    average = AveragedModel(
        model, setting.device, lambda mean, new, _: keep * mean + (1 - keep) * new, use_buffers=True
    )
    meters: dict[str, SmoothedMeter] = defaultdict(SmoothedMeter)
    count, end = 0, time.time()

    def step() -> None:
        nonlocal count, end
        images, labels = prepare(*next_batch())
        start = time.time()
        meters["data"].update(start - end)
        with setting.autocast():
            logits = network(images)
            loss = criterion(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], setting.clip)
        optimizer.step()
        if count % EMA_EVERY == 0:
            average.update_parameters(model)
        top1, top5 = _percent_right(logits, labels, (1, min(5, setting.classes)))
        size = len(labels)
        meters["loss"].update(loss.item())
        meters["lr"].update(optimizer.param_groups[0]["lr"])
        meters["top1"].update(top1.item(), size)
        meters["top5"].update(top5.item(), size)
        meters["images/s"].update(size / (time.time() - start))
        meters["time"].update(time.time() - end)
        if count % setting.log_every == 0:
            _text(**{name: meter.median for name, meter in meters.items()})
        count, end = count + 1, time.time()

    return Loop(model, step)


class SmoothedMeter:
    """The last twenty values and the sum of all, as torchvision's script keeps of each thing it measures."""

    def __init__(self) -> None:
        self.newest: deque[float] = deque(maxlen=20)
        self.total, self.count = 0.0, 0

    def update(self, value: float, weight: int = 1) -> None:
        self.newest.append(value)
        self.total += value * weight
        self.count += weight

    @property
    def median(self) -> float:
        return statistics.median(self.newest)


@torch.inference_mode()
def _percent_right(logits: Tensor, labels: Tensor, among: tuple[int, ...]) -> list[Tensor]:
    """For each k of `among`, in how many percent of the images the label is one of the k best."""
    best = logits.topk(max(among), 1).indices.t()
    right = best == labels[None]
    return [right[:k].flatten().sum(dtype=torch.float32) * (100 / len(labels)) for k in among]


def _text(**values: float) -> str:
    """A line of the log, formed and not printed."""
    return "  ".join(f"{name}: {value:.4g}" for name, value in values.items())


def accelerate(setting: Setting, next_batch: NextBatch) -> Loop:
    """Accelerate's documented loop, everything prepared; its average is torch's, as it has none of its own."""
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(mixed_precision=setting.precision, cpu=torch.device(setting.device).type == "cpu")
    model, prepare = setting.placed(), input_on_device(setting)
    optimizer = sgd(setting, parameter_groups(model, setting.weight_decay))
    schedule = CosineAnnealingLR(optimizer, setting.total_steps)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(setting.ema_decay), use_buffers=True)
    network = torch.compile(model) if setting.compile else model
    network, optimizer, schedule = accelerator.prepare(network, optimizer, schedule)
    total_loss, count = torch.zeros((), device=setting.device), 0

    def step() -> None:
        nonlocal total_loss, count
        images, labels = prepare(*next_batch())
        with accelerator.accumulate(network):
            loss = F.cross_entropy(network(images), labels)
            total_loss += loss.detach().float()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(network.parameters(), setting.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            average.update_parameters(model)
            count += 1
        if count % setting.log_every == 0:
            _text(loss=total_loss.item() / setting.log_every, lr=schedule.get_last_lr()[0])
            total_loss = torch.zeros_like(total_loss)

    return Loop(model, step)


def lightning(setting: Setting, next_batch: NextBatch) -> Loop:
    """Lightning's Trainer over a LightningModule, without a logger, checkpoints and a progress bar."""
    return LightningLoop(setting, next_batch)


class LightningLoop(Loop):
    """Each block is a `fit` of its own, with a few steps more at its start that are not counted."""

    def __init__(self, setting: Setting, next_batch: NextBatch) -> None:
        super().__init__(setting.placed())
        self.setting, self.batches = setting, Endless(next_batch)
        network = torch.compile(self.model) if setting.compile else self.model
        self.module = _lightning_module(setting, network)

    def __call__(self) -> None:
        self.block(1)

    def block(self, steps: int, mark: Callable[[], object] = lambda: None) -> None:
        from lightning.pytorch import Trainer, callbacks

        class Marks(callbacks.Callback):
            def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
                if batch_idx in (WARM_STEPS, WARM_STEPS + steps):
                    mark()

        average = getattr(callbacks, "EMAWeightAveraging", None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
            Trainer(
                accelerator=torch.device(self.setting.device).type,
                devices=1,
                precision="bf16-mixed" if self.setting.precision == "bf16" else "32-true",
                max_steps=WARM_STEPS + steps + 1,
                gradient_clip_val=self.setting.clip,
                log_every_n_steps=self.setting.log_every,
                callbacks=[Marks(), *([average(decay=self.setting.ema_decay)] if average else [])],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            ).fit(self.module, self.batches)


class Endless:
    """An iterable of batches without a length, for `fit`."""

    def __init__(self, next_batch: NextBatch) -> None:
        self.next_batch = next_batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield self.next_batch()


def _lightning_module(setting: Setting, network: Any) -> Any:
    from lightning.pytorch import LightningModule

    prepare = input_on_device(setting)

    class Classifier(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            images, labels = prepare(*batch)
            logits = self.network(images)
            loss = F.cross_entropy(logits, labels)
            self.log("train/loss", loss)
            self.log("train/top1", (logits.argmax(1) == labels).float().mean())
            return loss

        def configure_optimizers(self) -> dict[str, Any]:
            optimizer = sgd(setting, parameter_groups(self.network, setting.weight_decay))
            schedule = CosineAnnealingLR(optimizer, setting.total_steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return Classifier()
