"""A bayes sweep against a grid of as many trials: learning rate and weight decay of a small real training.

    python -m tests.bench.search --seeds 10 --side 4

A trial trains a small residual network on drawn shapes, 16 x 16 pixels, for 150 steps: about a second. For each seed
the grid has SIDE values of each, from end to end of the same range that the bayes sweep searches; both choose the
setting of least validation loss, and both choices are then trained again with seeds that neither has seen. The better
mean loss wins.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from launch.sweep.grammar import expand
from launch.sweep.points import grid
from launch.sweep.study import ask, tell, trial_name
from launch.sweep.sweep_json import sweep_json
from launch.sweep.sweep_types import Distribution, Sweep, Values
from resnet.data.sources.shapes import draw
from resnet.rundir.files import to_json, write_atomic

PIXELS = 16
PER_CLASS = 160
EPOCHS = 3
BATCH = 32
FRESH = 5
"""Trainings by which a setting is judged."""
RANGES = {"optimizer.lr": (1e-4, 1.0), "optimizer.weight_decay": (1e-6, 1e-1)}

Setting = tuple[float, float]
"""Learning rate, weight decay."""


class Data(NamedTuple):
    images: torch.Tensor
    """(samples, 3, PIXELS, PIXELS), mean 0, standard deviation 1."""
    labels: torch.Tensor


def read(folder: Path, split: str) -> Data:
    images, labels = [], []
    for label, kind in enumerate(sorted((folder / split).iterdir())):
        for file in sorted(kind.iterdir()):
            with Image.open(file) as image:
                images.append(np.asarray(image.resize((PIXELS, PIXELS), Image.Resampling.BOX), dtype=np.float32))
            labels.append(label)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    return Data((pixels - 0.5) / 0.29, torch.tensor(labels))


class Block(nn.Module):
    """A basic residual block of half the size and twice the channels."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outside)
        self.second = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outside)
        self.shortcut = nn.Conv2d(inside, outside, 1, stride=2, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        inner = functional.relu(self.first_norm(self.first(images)))
        return functional.relu(self.second_norm(self.second(inner)) + self.shortcut(images))


def train(data: Data, val: Data, setting: Setting, seed: int) -> float:
    """Validation loss after training with a cosine schedule; 10 where it diverged."""
    torch.manual_seed(seed)
    network = nn.Sequential(Block(3, 12), Block(12, 24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=setting[0], momentum=0.9, weight_decay=setting[1])
    steps = EPOCHS * (len(data.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(data.labels))
        for chosen in order[: len(order) // BATCH * BATCH].split(BATCH):
            loss = functional.cross_entropy(network(data.images[chosen]), data.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        loss = float(functional.cross_entropy(network(val.images), val.labels))
    return loss if loss < 10 else 10.0


def best_of_grid(data: Data, val: Data, side: int, seed: int) -> Setting:
    points = grid(Sweep("grid", {}, {key: _spaced(key, side) for key in RANGES}, tuple(RANGES)))
    return min((_setting(point) for point in points), key=lambda setting: train(data, val, setting, seed))


def _spaced(key: str, side: int) -> Values:
    low, high = RANGES[key]
    return Values(tuple(expand(key, f"log({low},{high},{side})")))


def _setting(point: dict[str, str]) -> Setting:
    lr, decay = (float(point[key]) for key in RANGES)
    return lr, decay


def best_of_bayes(data: Data, val: Data, folder: Path, count: int, seed: int, parallel: int) -> Setting:
    """Trials are asked for `parallel` at a time, before the first of them has ended."""
    parameters: dict[str, Values | Distribution] = {
        key: Distribution("uniform", low, high, log=True) for key, (low, high) in RANGES.items()
    }
    order = ("recipe", *parameters)
    sweep = Sweep("bayes", {"recipe": "bench"}, parameters, order, metric="loss", run_cap=count)
    folder.mkdir()
    write_atomic(folder / "sweep.json", to_json(sweep_json(sweep) | {"name": "bench", "seed": seed, "created": 0}))
    losses: dict[Setting, float] = {}
    for start in range(0, count, parallel):
        settings = {number: _setting(ask(folder, number)) for number in range(start, min(start + parallel, count))}
        for number, setting in settings.items():
            losses[setting] = train(data, val, setting, seed)
            row = {"step": 1, "epoch": EPOCHS, "val/loss": losses[setting]}
            (folder / trial_name(number) / "metrics.jsonl").write_text(to_json(row) + "\n")
            tell(folder, number, "finished")
    return min(losses, key=losses.__getitem__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--side", type=int, default=4, help="values of each in the grid; trials: its square")
    parser.add_argument("--parallel", type=int, default=1, help="trials of the bayes sweep that run at once")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder, "shapes"), PER_CLASS, 2 * PIXELS)
        data, val = (read(Path(folder, "shapes"), split) for split in ("train", "val"))
        count, won = arguments.side**2, 0
        print(f"{count} trials each; loss of the choice over {FRESH} fresh seeds", flush=True)
        print("seed |  grid: lr  decay   loss | bayes: lr  decay   loss | better")
        for seed in range(arguments.seeds):
            settings = (
                best_of_grid(data, val, arguments.side, seed),
                best_of_bayes(data, val, Path(folder, f"sweep-{seed}"), count, seed, arguments.parallel),
            )
            fresh = range(1000 + FRESH * seed, 1000 + FRESH * (seed + 1))
            losses = [mean(train(data, val, setting, one) for one in fresh) for setting in settings]
            won += losses[1] < losses[0]
            parts = [f"{s[0]:8.2g} {s[1]:7.1e} {loss:6.3f}" for s, loss in zip(settings, losses, strict=True)]
            print(f"{seed:4} | {parts[0]}  | {parts[1]}  | {'bayes' if losses[1] < losses[0] else 'grid'}", flush=True)
    print(f"bayes found the better setting in {won} of {arguments.seeds} seeds")


if __name__ == "__main__":
    main()
