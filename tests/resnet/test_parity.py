"""Our training step against a plain PyTorch loop, from the same weights on the same batches."""

from itertools import groupby
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision

from recipes.load import load
from recipes.plan import make_plan
from resnet.build import build_accelerator, build_data, build_model_for, build_state, wrap
from resnet.data.batches import Batch, MicroBatches, training_keys
from resnet.data.order import Order
from resnet.loop import train_step
from resnet.trainer import Trainer
from tests.helpers import OFF, cores, furthest, unchanged_process

V1 = [
    # torchvision's V1 recipe on small images, its learning rate divided by 10 after an epoch of 10 steps.
    *("recipe=resnet50_imagenet", *OFF, "model.name=resnet18", "max_batch_per_device=null", "schedule.every=1"),
    *("data.source=shapes", "data.val=null", "data.per_class=16", "data.size=40", "augment.train_size=32"),
    *("augment.val_resize=36", "augment.val_size=32", "batch_size=16", "log_every=5"),
]
MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

Weights = dict[str, torch.Tensor]


def our_steps(words: list[str], steps: int) -> tuple[Weights, list[Batch], Weights]:
    """Initial weights, the batches of so many steps, and the weights after them."""
    recipe = load(words).recipe
    accelerator = build_accelerator(recipe)
    train, val = build_data(recipe)
    order = Order(train.labels, recipe.seed, recipe.batch_size)
    plan = make_plan(recipe, len(order), world_size=1)
    source = MicroBatches(train, val, order, recipe.augment)
    batches = [source[key] for step in range(steps) for key in training_keys(plan, 0, step)]

    model, _ = build_model_for(recipe, classes=10)
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = build_state(recipe, plan, model, accelerator)
    network = wrap(recipe, plan, state.model, accelerator, step=0).train()
    trainer = Trainer(plan, accelerator, network, state, 10, len(val), hooks=None, batches=iter(batches))
    for step in range(steps):
        train_step(trainer)
        state.step = step + 1
    return initial, batches, state.model.state_dict()


def plain_steps(initial: Weights, batches: list[Batch], memory_format: torch.memory_format) -> Weights:
    """V1 as torchvision's references have it: SGD, 0.1 at batch 256, momentum 0.9, weight decay 1e-4 on everything."""
    model = torchvision.models.resnet18(num_classes=10)
    model.load_state_dict(initial)
    model = model.to(memory_format=memory_format).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 * 16 / 256, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    epoch = 0
    for (now, _), micro_batches in groupby(batches, lambda batch: (batch.key.epoch, batch.key.start // 16)):
        if now != epoch:
            schedule.step()
            epoch = now
        step = list(micro_batches)
        optimizer.zero_grad()
        for batch in step:
            # In as many passes as ours: rounded otherwise, a ReLU here and there lets through what it else stops, and
            # both loops are 0.01 apart after 5 steps.
            if memory_format == torch.channels_last:
                images = batch.images.float() * (1 / (255 * STD)) + -MEAN / STD
            else:
                images = torch.addcmul(-MEAN / STD, batch.images, 1 / (255 * STD))
            assert (images - (batch.images / 255 - MEAN) / STD).abs().max() < 1e-6
            loss = F.cross_entropy(model(images.contiguous(memory_format=memory_format)), batch.labels)
            (loss * (len(batch.labels) / sum(len(batch.labels) for batch in step))).backward()
        optimizer.step()
    return model.state_dict()


def both(shapes: Path, *words: str, steps: int) -> tuple[list[Batch], Weights, Weights]:
    """The batches, and the weights that ours and a plain loop end with."""
    with unchanged_process(), cores(1):
        initial, batches, found = our_steps([*V1, f"data.train={shapes}", *words], steps)
        assert not any(batch.broken for batch in batches)
        last = "channels_last=true" in words
        expected = plain_steps(initial, batches, torch.channels_last if last else torch.contiguous_format)
    assert found.keys() == expected.keys()
    assert (found["fc.weight"] - initial["fc.weight"]).abs().max() > 1e-3
    return batches, found, expected


@pytest.mark.parametrize("channels_last", ["false", "true"])
def test_twenty_steps_end_with_the_weights_of_a_plain_loop(shapes, channels_last):
    batches, found, expected = both(shapes, f"channels_last={channels_last}", steps=20)
    assert [batch.images.shape for batch in batches] == [(16, 3, 32, 32)] * 20
    assert furthest(found, expected) <= 1e-6


def test_a_step_in_micro_batches_has_the_mean_gradient_of_its_images(shapes):
    words = ["channels_last=false", "max_batch_per_device=8", "data.max_train=57", "data.last_batch=keep"]
    batches, found, expected = both(shapes, *words, steps=8)
    assert [len(batch.labels) for batch in batches[:8]] == [8, 8, 8, 8, 8, 8, 4, 5]
    parameters = [name for name in found if "running" not in name and "num_batches" not in name]
    assert furthest({name: found[name] for name in parameters}, {name: expected[name] for name in parameters}) <= 1e-6
