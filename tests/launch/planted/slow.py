"""Runs that are slow."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

from resnet.stragglers import Seconds, told
from tests.launch.planted import Place, fault
from tests.launch.planted.made import CIFAR, Made, diagonal, own_code, trained

_SLEEPS = """\
import os, time
class Sleeps:
    def __init__(self, rank: int, after: int, seconds: float):
        self.rank, self.after, self.seconds = rank, after, seconds
    def on_step(self, step, model):
        if int(os.environ.get("RANK", "0")) == self.rank and step > self.after:
            time.sleep(self.seconds)
"""
_FAR_AWAY = """\
import time, torch
class Images:
    classes = ["a", "b"]
    def __init__(self, train: bool):
        self.labels = [0, 1] * (80 if train else 10)
    def __len__(self):
        return len(self.labels)
    def read(self, index):
        time.sleep(0.02)
        return torch.full((3, 40, 40), 90 * self.labels[index] + index % 60, dtype=torch.uint8)
    def describe(self, index):
        return f"row {index}"
"""


def _callback(file: Path, **arguments: float) -> str:
    given = ", ".join(f"{key}: {value}" for key, value in arguments.items())
    return f"plugins.callbacks=[{{path: {file}:Sleeps, args: {{{given}}}}}]"


def _with(made: Made, row: dict[str, Any]) -> Path:
    """Running, with the same values in each line of its log."""
    values = {key: lambda step, value=value: value for key, value in row.items()}
    return made.log(**values, epochs=4, top1=None).running(1564)


@fault("slow", "data_wait")
def images_from_far_away(place: Place) -> Path:
    """A source of images that takes 20 ms for each (trained)."""
    file = own_code(place, "far_away", _FAR_AWAY)
    return trained(place, "far-away", "epochs=2", f"data={{source: plugin, plugin: {file}:Images, num_workers: 0}}")


@fault("slow", "data_wait")
def two_workers_for_a_gpu(place: Place) -> Path:
    """Two data workers for a GPU, where the job has sixteen cores a rank."""
    made = Made(place, "two-workers", *CIFAR, "data.num_workers=2").sent(cpus_per_rank=16)
    return made.log(data_wait=lambda step: 0.55, epochs=4, top1=None).running(1564)


@fault("slow", "data_wait")
def shared_file_system_that_is_cold(place: Place) -> Path:
    """Images on a shared file system, read for the first time in the first epoch."""
    words = ("recipe=resnet50_imagenet", "epochs=4", "log_every=500")
    made = Made(place, "cold", *words, ranks=8, images=1281167).sent(gpus_per_node=8)
    made.log(data_wait=lambda step: 0.7 if step < 6000 else 0.1, epochs=3, top1=None)
    return made.running(15000)


@fault("slow", "slow_rank")
def callback_that_sleeps_on_one_rank(place: Place) -> Path:
    """One of two ranks that sleeps in a callback of the user's (trained)."""
    sleeps = _callback(own_code(place, "sleeps", _SLEEPS), rank=1, after=0, seconds=0.5)
    return place.train("one-sleeps", sleeps, "epochs=2", ranks=2)


@fault("slow", "slow_rank")
def node_with_a_slow_disk(place: Place) -> Path:
    """Eight ranks on two nodes, one of which has a slow disk."""
    made = Made(place, "slow-disk", ranks=8).sent(nodes=2, gpus_per_node=4)
    ranks = [Seconds(0.2, 0.12 if rank == 5 else 0.01, 0.07, 0.0 if rank == 5 else 0.11) for rank in range(8)]
    row = told(ranks, ["n1"] * 4 + ["n2"] * 4)
    return made.log(
        **{key: lambda step, value=value: value for key, value in row.items()}, epochs=4, top1=None
    ).running(1564)


@fault("slow", "slow_rank")
def throttled_gpu(place: Place) -> Path:
    """One of eight GPUs computes at half of its clock."""
    made = Made(place, "throttled", ranks=8).sent(nodes=2, gpus_per_node=4)
    ranks = [Seconds(0.2, 0.01, 0.18 if rank == 2 else 0.09, 0.0 if rank == 2 else 0.09) for rank in range(8)]
    row = told(ranks, ["n1"] * 4 + ["n2"] * 4)
    return made.log(
        **{key: lambda step, value=value: value for key, value in row.items()}, epochs=4, top1=None
    ).running(1564)


@fault("slow", "network")
def ethernet_between_nodes(place: Place) -> Path:
    """Sixteen ranks on four nodes, all of which wait for gradients half of the time."""
    made = Made(place, "ethernet", ranks=16).sent(nodes=4, gpus_per_node=4)
    row = told([Seconds(0.2, 0.01, 0.09, 0.1)] * 16, [f"n{rank // 4}" for rank in range(16)])
    return made.log(
        **{key: lambda step, value=value: value for key, value in row.items()}, epochs=4, top1=None
    ).running(1564)


@fault("slow", "slower_than_before")
def becomes_slow(place: Place) -> Path:
    """Something that takes half a second a step from step 16 on (trained)."""
    sleeps = _callback(own_code(place, "sleeps", _SLEEPS), rank=0, after=16, seconds=0.5)
    return trained(place, "becomes-slow", sleeps, "epochs=3")


@fault("slow", "slower_than_others")
def shared_gpu(place: Place) -> Path:
    """A GPU that another program uses too, from the beginning on."""
    for number in range(3):
        Made(place, f"usual-{number}", *CIFAR, f"seed={number}").log().ended()
    return Made(place, "shared-gpu").log(images_per_second=lambda step: 4300.0).ended()


@fault("slow", "no_gpu")
def torch_without_cuda(place: Place) -> Path:
    """A job with GPUs, whose torch is one for CPUs."""
    made = Made(place, "no-gpu", device="CPU").sent(gpus_per_node=4)
    return made.log(images_per_second=lambda step: 90.0, epochs=2, top1=None).running(782)


@fault("slow", "keys")
def kernels_that_repeat_themselves(place: Place) -> Path:
    """Deterministic kernels in fp32, which the recipe does not ask for."""
    made = Made(place, "deterministic", *CIFAR, "deterministic=true", "precision=no")
    return made.log(epochs=4, top1=None).running(1564)


@fault("slow", "checkpoint")
def slow_disk(place: Place) -> Path:
    """A checkpoint after every step, on a disk that takes a third of a second for it (trained)."""
    from resnet.checkpoint import saver

    def slowly(*arguments: object) -> Path:
        import time

        time.sleep(0.35)
        return commit(*arguments)  # pyright: ignore[reportArgumentType]

    commit = saver.commit
    with mock.patch.object(saver, "commit", slowly):
        return trained(place, "slow-saves", "checkpoint.every=1 step", "epochs=5")


@fault("slow", "evaluation")
def evaluation_longer_than_training(place: Place) -> Path:
    """An evaluation after each epoch, which takes as long as the epoch."""
    made = Made(place, "evaluates").log().evaluated(diagonal(right=0.913))
    made.attempt()
    made.spent({"imports": 12.0}, 0, 7820, start=20, train=1200, evaluate=1150, save=4, lost=0, other=3)
    return made.ended()


@fault("slow", "start")
def imports_from_a_shared_file_system(place: Place) -> Path:
    """Starts of six minutes, nearly all of it imports from a shared file system, six times in six hours."""
    made = Made(place, "long-starts").sent(time="1:00:00").log()
    for step in range(0, 7800, 1300):
        made.attempt(step)
        stages = {"python": 40.0, "imports": 800.0, "join": 20.0, "look": 4.0, "step": 6.0}
        made.spent(stages, step, step + 1300, start=870, train=2500, evaluate=100, save=10, lost=0, other=2)
    return made.ended()


@fault("slow", "lost_work")
def killed_between_checkpoints(place: Place) -> Path:
    """Attempts that are killed long after their last checkpoint."""
    made = Made(place, "loses", *CIFAR, "checkpoint.every=5 epochs").log()
    for step in range(0, 7820, 1955):
        made.attempt(step)
        made.spent({"imports": 9.0}, step, step + 3500, step + 1955, start=14, train=1600, evaluate=20, save=1)
    return made.ended()
