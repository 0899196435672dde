"""A part of a step computed again by another rank: finds a device that computes wrong gradients without an error.

The reduction spreads such a gradient over all ranks, whose weights stay equal: comparing those does not find it. So
every `recheck` steps, before the optimizer, each rank computes the gradients of half of its last micro-batch, and those
of the same half of the next rank's; both are to agree to the last bit. What goes in is a function of the order and of
the step, so that nothing but two numbers a rank goes over the network. Nothing of it stays: a run with and without is
the same to the last bit.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist

from recipes.text import listed
from resnet.data.batches import Batch, Key, training_keys
from resnet.data.bijection import mix as mix_numbers
from resnet.losses import loss_of_step
from resnet.process.environment import node_name
from resnet.ranks import of_all_ranks
from resnet.replicas import SilentCorruption, checksums, device_kind, odd_ones
from resnet.trainer import Trainer
from resnet.training_input import training_input

DROP = 2
"""What is drawn for random layers, beside other uses of a step's numbers."""


class Answer(NamedTuple):
    """What a rank makes of a micro-batch: checksums."""

    images: int
    gradients: int
    broken: int = 0
    """Images that it could not read, in whose place others stand: another rank may have read them."""


def recheck(trainer: Trainer, batch: Batch) -> None:
    """Compare this rank's gradients of its last micro-batch with another rank's, and the same of the next rank's.

    Called by all ranks, before the optimizer's step. Raises SilentCorruption where they differ; where this machine does
    not compute the same twice at all, that is said once, and the run goes on without.
    """
    ranks = trainer.plan.world_size
    following = (trainer.rank + 1) % ranks
    theirs = trainer.next_batch()
    assert theirs.key == key_of(trainer, following), theirs.key
    if not trainer.rechecks:
        return
    with _nothing_stays(trainer):
        own, other = _gathered(_answer(trainer, batch, trainer.rank), _answer(trainer, theirs, following))
        if not any(_differ(other[rank], own[(rank + 1) % ranks]) for rank in range(ranks)):
            return
        hosts, kinds = zip(*of_all_ranks((node_name(), device_kind(trainer.device))), strict=True)
        if len(set(kinds)) > 1:
            _give_up(trainer, "the ranks' devices are not of one kind")
            return
        # Made anew, images included. Two ranks have no third, so that each tells whether the other repeats itself.
        third = (trainer.rank + 2) % ranks if ranks > 2 else following
        assert trainer.make is not None
        again = [_answer(trainer, trainer.make(key_of(trainer, rank)), rank) for rank in (trainer.rank, third)]
        repeated, thirds = _gathered(*again)
    wrong = who_is_wrong(own, other, repeated, thirds)
    if wrong is None:
        _give_up(trainer, "several ranks do not compute twice the same")
        return
    _raise(trainer, own, other, wrong, hosts)


def _differ(first: Answer, second: Answer) -> bool:
    """Whether two answers on one micro-batch contradict each other."""
    return first != second and not first.broken and not second.broken


def _give_up(trainer: Trainer, reason: str) -> None:
    trainer.rechecks = False
    if trainer.rank == 0:
        told = "recheck: gradients are not compared any more, as"
        print(f"{told} {reason}: set recheck=off, or deterministic=true", file=sys.stderr, flush=True)


def key_of(trainer: Trainer, rank: int) -> Key:
    """The last micro-batch of a rank in the step that is being made."""
    return [*training_keys(trainer.plan, rank, trainer.state.step)][-1]


def who_is_wrong(
    own: list[Answer], other: list[Answer], repeated: list[Answer], thirds: list[Answer]
) -> tuple[list[int], bool] | None:
    """Ranks whose answers are wrong, and whether that is certain: else the wrong one is among them.

    Each by rank: own, other: of its own micro-batch, and of the next rank's; repeated: of its own once more; thirds: of
    the micro-batch of the rank after the next, with two ranks of the next's once more. None: several ranks do not give
    the same answer twice, of which one alone would be hardware at fault, and nothing follows from the difference.
    """
    ranks = len(own)
    unsteady = [rank for rank in range(ranks) if _differ(own[rank], repeated[rank])]
    if ranks == 2:
        unsteady = sorted({*unsteady, *(rank for rank in range(2) if _differ(other[rank], thirds[rank]))})
    if len(unsteady) > 1:
        return None
    if unsteady:
        return unsteady, True
    if ranks == 2:
        return [0, 1], False
    blamed, doubtful = set[int](), set[int]()
    for rank in range(ranks):
        made = {rank: own[rank], (rank - 1) % ranks: other[rank - 1], (rank - 2) % ranks: thirds[rank - 2]}
        who = [each for each, answer in made.items() if not answer.broken]
        odd = odd_ones([made[each] for each in who]) if who else []
        (doubtful if odd is None else blamed).update(who if odd is None else [who[each] for each in odd])
    return (sorted(blamed), True) if blamed else (sorted(doubtful), False)


def _raise(
    trainer: Trainer, own: list[Answer], other: list[Answer], wrong: tuple[list[int], bool], hosts: tuple[str, ...]
) -> None:
    ranks, certain = wrong
    pairs = [(own[(rank + 1) % len(own)], answer) for rank, answer in enumerate(other)]
    images = any(_differ(first, second) and first.images != second.images for first, second in pairs)
    what = "other images of the same files" if images else "other gradients of the same images"
    places = listed([f"rank {rank} on {hosts[rank]}" for rank in ranks])
    if certain:
        told = f"{places}: makes {what} than other ranks, or than before"
    else:
        told = f"{places}: one makes {what} than another, and it is not known which is right"
    raise SilentCorruption(f"{told} (recheck, before the update of its step)", own=certain and trainer.rank in ranks)


def _answer(trainer: Trainer, batch: Batch, rank: int) -> torch.Tensor:
    """int64 (3,): the fields of an Answer, of a rank's last micro-batch and the gradients of its first half.

    Half, so that it fits beside the gradients of the step, and without torch.compile.
    """
    plan, recipe, step = trainer.plan, trainer.recipe, trainer.state.step
    slot = (rank + 1) * plan.accumulation - 1
    given = training_input(batch, recipe, step, slot, trainer.classes, trainer.device, trainer.input_dtype)
    half = slice(max(2, len(batch.labels) // 2))
    part = given._replace(
        images=given.images[half],
        labels=given.labels[half],
        targets=None if given.targets is None else given.targets[half],
    )
    taught = None if trainer.teacher is None else trainer.teacher(part.images)
    torch.manual_seed(mix_numbers(recipe.seed, step, slot, DROP))
    with trainer.accelerator.autocast():
        logits = trainer.state.model(part.images).float()
    loss = trainer.state.scaler.scale(loss_of_step(trainer, logits, part, taught))
    # Of inputs alone: neither `grad` nor DDP's reduction hears of it.
    found = torch.autograd.grad(loss, trainer.parameters, allow_unused=True)
    gradients = checksums([checksums([gradient for gradient in found if gradient is not None])])
    return torch.cat([given.checksum[None], gradients, gradients.new_tensor([len(batch.broken)])])


def _gathered(first: torch.Tensor, second: torch.Tensor) -> tuple[list[Answer], list[Answer]]:
    """Two answers of every rank, by rank. Waits for the device."""
    mine = torch.cat([first, second])
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, mine)
    rows = torch.stack(gathered).tolist()
    return [Answer(*row[:3]) for row in rows], [Answer(*row[3:]) for row in rows]


@contextlib.contextmanager
def _nothing_stays(trainer: Trainer) -> Iterator[None]:
    """Compute as repeatably as the device can, and put buffers, random numbers and settings back afterwards."""
    buffers = [*trainer.state.model.buffers()]
    before = [buffer.clone() for buffer in buffers]
    on_gpu = trainer.device.type == "cuda"
    strict = torch.are_deterministic_algorithms_enabled()
    settings = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    with torch.random.fork_rng([trainer.device] if on_gpu else []), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if on_gpu and not strict:
                torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
                torch.use_deterministic_algorithms(True, warn_only=True)
            yield
        finally:
            if on_gpu and not strict:
                torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = settings
                torch.use_deterministic_algorithms(False)
            with torch.no_grad():
                for buffer, value in zip(buffers, before, strict=True):
                    buffer.copy_(value)
