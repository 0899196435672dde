"""Two networks on the same real images, each in a process of its own: how they answer, and how fast they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from recipes.load import dump
from recipes.net_size import net_size
from recipes.schema.recipe import Recipe
from recipes.text import plural, table
from resnet.data.sources.registry import Subset
from resnet.inference import network_input
from resnet.process.environment import PROGRAM
from resnet.tools.eval_data import EvalData
from resnet.tools.export.served import Served, served
from resnet.tools.output import counted
from resnet.tools.weights import batches_of

LATENCY_BATCH, THROUGHPUT_BATCH = 1, 32
CHECKED_BATCHES = (1, 7, 32)
"""Sizes that the first images are also given in, since an export may be right at one of them alone."""
TIMED_SECONDS = 4.0
"""For each batch size, over both networks."""
LEAST_TIMES, MOST_TIMES = 5, 100
_STEADY = 1.5
"""Ratio of the quartiles of times that still tell something."""


class Subject(NamedTuple):
    """A network to be measured."""

    name: str
    """For tables and messages."""
    spec: Mapping[str, Any]
    """How it is loaded, see `resnet.tools.export.serve`."""
    parameters: int
    macs: int
    """Multiply-accumulate operations of an image."""
    bytes: int
    """On disk."""


@dataclass(frozen=True)
class Figures:
    """What was measured of a network. top1 and top5 in percent of the images."""

    name: str
    top1: float
    top5: float
    parameters: int
    bytes: int
    macs: int
    latency_ms: float
    """Median of a forward pass of one image."""
    images_per_second: float
    """By the median of a forward pass of 32 images."""


@dataclass(frozen=True)
class Measured:
    """Two networks beside each other."""

    before: Figures
    after: Figures
    images: int
    largest_difference: float
    """Between two logits."""
    largest_logit: float
    """Absolute, of the network before."""
    agreement: float
    """Percent of the images to which both give the same answer."""
    broken: tuple[str, ...] = ()
    """Images that could not be read."""
    spread: float = 1.0
    """Of the times of a network, the upper quartile to the lower one: the largest such ratio."""

    def as_json(self) -> dict[str, Any]:
        # Of the images that could not be read how many: their places are this machine's.
        return asdict(self) | {"broken": len(self.broken)}


def as_trained(name: str, weights: Path, recipe: Recipe, classes: int, folder: Path) -> Subject:
    """The network of a weights file by its recipe, which is written into a folder for the other process."""
    file = folder / f"{weights.stem}-{len(list(folder.iterdir()))}.yaml"
    file.write_text(dump(recipe), encoding="utf-8")
    spec = {"kind": "ours", "path": str(weights), "recipe": str(file), "program": str(PROGRAM)}
    spec |= {"channels_last": recipe.channels_last}
    parameters, macs = net_size(recipe.model, classes, recipe.augment.val_size)
    return Subject(name, spec, parameters, macs, weights.stat().st_size)


def spread_over(data: EvalData, most: int) -> EvalData:
    """At most so many of the images, evenly spread over them all."""
    if len(data.source) <= most:
        return data
    chosen = np.linspace(0, len(data.source) - 1, most).round().astype(np.int64)
    return data._replace(source=Subset(data.source, chosen))


def measure(
    recipe: Recipe, data: EvalData, before: Subject, after: Subject, tell: Callable[[str], object] = lambda _: None
) -> Measured:
    """Give both networks the images, prepared as in the recipe's evaluation and in float32, and time them in turn.

    tell: is called with what is begun. Raises ValueError where one of them cannot be loaded or fails, no image can be
    read, or the network before gives no numbers.
    """
    shape = recipe.model.in_channels, recipe.augment.val_size, recipe.augment.val_size
    with served(before.name, before.spec) as first, served(after.name, after.spec) as second:
        tell(f"{before.name} and {after.name} on {plural(len(data.source), 'image')}")
        counts, broken = _compare(recipe, data, first, second, before.spec["path"])
        if not counts.images:
            raise ValueError(f"none of the {plural(len(data.source), 'image')} could be read")
        tell("both are timed in turn")
        latencies, spread_of_one = _time_in_turn((first, second), (LATENCY_BATCH, *shape))
        passes, spread_of_many = _time_in_turn((first, second), (THROUGHPUT_BATCH, *shape))
    return Measured(
        before=_figures(before, counts.right[0], counts.right5[0], counts.images, latencies[0], passes[0]),
        after=_figures(after, counts.right[1], counts.right5[1], counts.images, latencies[1], passes[1]),
        images=counts.images,
        largest_difference=counts.difference,
        largest_logit=counts.largest,
        agreement=100 * counts.agreed / counts.images,
        broken=tuple(broken),
        spread=max(spread_of_one, spread_of_many),
    )


def _figures(subject: Subject, right: int, right5: int, images: int, latency: float, pass_of_many: float) -> Figures:
    """right, right5: how many of the images. latency, pass_of_many: seconds."""
    return Figures(
        name=subject.name,
        top1=100 * right / images,
        top5=100 * right5 / images,
        parameters=subject.parameters,
        bytes=subject.bytes,
        macs=subject.macs,
        latency_ms=1000 * latency,
        images_per_second=THROUGHPUT_BATCH / pass_of_many,
    )


@dataclass
class _Counts:
    images: int = 0
    agreed: int = 0
    difference: float = 0.0
    largest: float = 0.0

    def __post_init__(self) -> None:
        self.right, self.right5 = [0, 0], [0, 0]

    def add(self, logits: Sequence[np.ndarray], labels: np.ndarray) -> None:
        answers = [one.argmax(1) for one in logits]
        self.images += len(labels)
        self.agreed += int((answers[0] == answers[1]).sum())
        self.differ(*logits)
        for at, one in enumerate(logits):
            self.right[at] += int((answers[at] == labels).sum())
            best = np.argsort(-one, axis=1)[:, :5]
            self.right5[at] += int((best == labels[:, None]).any(1).sum())

    def differ(self, one: np.ndarray, other: np.ndarray) -> None:
        # A NaN, which no comparison would find, counts as the largest difference.
        difference = float(np.abs(one - other).max())
        self.difference = difference if difference != difference else max(self.difference, difference)
        self.largest = max(self.largest, float(np.abs(one).max()))


def _compare(recipe: Recipe, data: EvalData, first: Served, second: Served, weights: str) -> tuple[_Counts, list[str]]:
    """weights: the first one's file, for messages."""
    counts, broken = _Counts(), []
    for images, labels, unread in prepared(recipe, data):
        broken += unread
        if not len(labels):
            continue
        logits = [first.logits(images)]
        if not np.isfinite(logits[0]).all():
            raise ValueError(f"{weights} answers images with nan or inf, not with numbers: take other weights")
        logits.append(second.logits(images))
        if not counts.images:
            for size in CHECKED_BATCHES:
                counts.differ(logits[0][:size], second.logits(images[:size]))
        counts.add(logits, labels)
    return counts, broken


def prepared(recipe: Recipe, data: EvalData) -> Iterator[tuple[np.ndarray, np.ndarray, list[str]]]:
    """Batches of images float32 (N, 3, H, W), normalised, their labels (N,), and what could not be read of them."""
    cpu = torch.device("cpu")
    batches = batches_of(data.source, recipe, THROUGHPUT_BATCH, cpu)
    for batch in counted(batches, len(data.source), weight=lambda batch: batch.key.stop - batch.key.start):
        images = network_input(batch.images, recipe, cpu, torch.float32).contiguous() if len(batch.labels) else None
        yield np.empty(0) if images is None else images.numpy(), batch.labels.numpy(), batch.broken


def _time_in_turn(networks: Sequence[Served], shape: tuple[int, ...]) -> tuple[list[float], float]:
    """The median seconds of a forward pass of each, and the largest ratio of an upper quartile to the lower one."""
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    for network in networks:
        network.hold(images)
        network.seconds()
    times: list[list[float]] = [[] for _ in networks]
    begin = time.monotonic()
    while len(times[0]) < LEAST_TIMES or (len(times[0]) < MOST_TIMES and time.monotonic() - begin < TIMED_SECONDS):
        for network, found in zip(networks, times, strict=True):
            found.append(network.seconds())
    quartiles = [np.quantile(found, (0.25, 0.75)) for found in times]
    return [median(found) for found in times], max(float(high / low) for low, high in quartiles)


def table_of(measured: Measured) -> list[str]:
    """Before, after and what changed, a line each under a line of headings: within 80 columns for a short name.

    Another line where the times say little.

    `ms at 1` is the latency of one image, `img/s at 32` the throughput of batches of 32.
    """
    before, after = measured.before, measured.after
    columns = {
        "": [before.name, after.name, "change"],
        "top-1": [*(f"{one.top1:.2f}%" for one in (before, after)), f"{after.top1 - before.top1:+.2f}"],
        "top-5": [*(f"{one.top5:.2f}%" for one in (before, after)), f"{after.top5 - before.top5:+.2f}"],
        "params": [
            *(f"{one.parameters / 1e6:.2f}M" for one in (before, after)),
            _times(before.parameters, after.parameters),
        ],
        "size": [*(f"{one.bytes / 1e6:.2f} MB" for one in (before, after)), _times(before.bytes, after.bytes)],
        "GMACs": [*(f"{one.macs / 1e9:.4g}" for one in (before, after)), _times(before.macs, after.macs)],
        "ms at 1": [
            *(f"{one.latency_ms:.2f}" for one in (before, after)),
            _times(before.latency_ms, after.latency_ms),
        ],
        "img/s at 32": [
            *(f"{one.images_per_second:.0f}" for one in (before, after)),
            _times(before.images_per_second, after.images_per_second),
        ],
    }
    busy = (
        f"the times vary (quartiles x{measured.spread:.1f} apart): other programs are at work here, and they say little"
    )
    return [*table(columns, left=("",)), *([busy] if measured.spread > _STEADY else [])]


def _times(before: float, after: float) -> str:
    return f"x{after / before:.2f}" if before else ""
