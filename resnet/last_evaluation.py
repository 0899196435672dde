"""The evaluation that ends a run: the final weights on images that it has neither trained on nor chosen by."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch.distributed as dist
from torch import nn

from recipes.text import plural
from resnet.checkpoint.snapshot import load_weights
from resnet.data.batches import Batch, Key
from resnet.data.sources.source import Source
from resnet.data.targets import Targets
from resnet.evaluation import check_unreadable, evaluate
from resnet.last_files import final_weights
from resnet.ranks import together
from resnet.run_hooks import RunHooks
from resnet.rundir.evaluation import TEST, write_evaluation
from resnet.tally import described
from resnet.trainer import Trainer


class FinalTest(NamedTuple):
    """Images to test on."""

    source: Source
    batches: Callable[[Iterable[Key]], Iterator[Batch]]
    """Begins to make the batches of keys."""
    targets: Targets | None = None
    """Where an image may have several labels."""


def evaluate_at_the_end(trainer: Trainer, hooks: RunHooks, test: FinalTest) -> bool:
    """Evaluate the final weights; called on all ranks, once training is done and saved. False: a hook asked to stop."""
    state, samples = trainer.state, len(test.source)
    hooks.progress.message(f"the final weights are tested on {plural(samples, 'image')}")
    network = together(lambda: _final_network(trainer, hooks))
    for tensor in network.state_dict().values() if dist.is_initialized() else ():
        dist.broadcast(tensor, 0)
    trainer.targets = test.targets
    with hooks.ledger.of("evaluate"):
        result = evaluate(network, trainer, samples, test.batches(trainer.validation_keys(samples)))
    if result is None:
        return False
    check_unreadable(trainer, result["samples"], samples, "test")
    names = ("loss", "top1", "top5", "samples", *trainer.recipe.plugins.metrics)
    figures = {f"test/{name}": result[name] for name in names}
    hooks.log({"step": state.step, "epoch": trainer.plan.epoch(state.step)} | figures)
    hooks.test_result = result
    hooks.tracker.summary(figures)
    if hooks.metrics is not None and not hooks.lost:
        told = {**result, "mistakes": described(result["mistakes"], test.source.describe)}
        with contextlib.suppress(OSError):
            write_evaluation(hooks.run_dir, told, test.source.classes, state.best_step, TEST)
    return True


def _final_network(trainer: Trainer, hooks: RunHooks) -> nn.Module:
    """A network like that in training, on rank 0 with the final weights."""
    network = copy.deepcopy(trainer.state.weights)
    if trainer.rank == 0:
        file, _ = final_weights(hooks.run_dir, trainer.state.best_step)
        load_weights(network, file)
    return network
