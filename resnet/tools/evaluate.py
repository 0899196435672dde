"""`resnet eval`: the figures of networks on labelled images, several of them over the same decoded batches."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from recipes.schema.recipe import Recipe
from recipes.text import plural
from resnet.answers import Answers
from resnet.build import takes_cpu
from resnet.data.batches import Batch
from resnet.data.sources.source import targets_of
from resnet.inference import count_logits, predict_logits
from resnet.plugins import line_in
from resnet.process.mistakes import OfAllRanks
from resnet.ranks import of_all_ranks, together
from resnet.rundir.provenance import read_provenance
from resnet.tally import Tally, described
from resnet.tools.eval_data import THE_RECIPES, DataOptions, EvalData, open_eval_data
from resnet.tools.forward import evaluation_precision
from resnet.tools.judged import judged
from resnet.tools.trained import Trained
from resnet.tools.weights import autocast, batches_of, load_network, outputs_of, own_settings

_MOST_AT_ONCE = 128
"""Images of a forward pass where no run tells another number."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What weights reach on labelled images."""

    top1: float
    """Percent, 0-100, as top5 and ece."""
    top5: float | None
    """None with ReaL's labels, as `loss`: they are not defined there."""
    loss: float | None
    samples: int
    """Images that could be read."""
    weights: Path
    run: Path | None
    warnings: tuple[str, ...] = ()
    """Images that could not be read, and what else makes the figures doubtful."""
    name: str = ""
    """What the user calls the weights, as `first@last`."""
    averaged: bool | None = None
    """Whether the weights are an average (EMA, SWA); None where nothing tells."""
    ece: float | None = 0.0
    """Expected calibration error over 15 bins of equal width (Guo et al. 2017); None for images of several labels."""
    images_per_second: float | None = None
    """Of the pass over the images, in which other networks may have shared, without its first batch."""
    recipe: Recipe | None = field(default=None, repr=False)
    classes: list[str] = field(default_factory=list, repr=False)
    answered: int = 0
    """Classes that the network could answer."""
    confusion: torch.Tensor | None = field(default=None, repr=False)
    """int64 (classes, classes): images of class [row] taken for class [column]; None for images of several labels."""
    calibration: list[dict[str, Any]] = field(default_factory=list, repr=False)
    """Of each bin `samples`, mean `confidence` and `accuracy` in percent."""
    confused: list[list[int]] = field(default_factory=list, repr=False)
    """The most frequent [true, predicted, images] that are wrong."""
    mistakes: list[dict[str, Any]] = field(default_factory=list, repr=False)
    """The most confident wrong images: image, index, true, predicted, probability, probability_of_true."""
    notes: tuple[str, ...] = ()
    """How classes were matched, and the like."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The recipe's own (`plugins.metrics`), of its own validation images."""
    evidence: str | None = None
    """What to say of top1 beside what the recipe is known to reach; None: they cannot be compared."""

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """`class`, `samples` and `correct` of each class, in the order of the network's outputs.

        Raises ValueError for images of several labels, of which none is an image's class.
        """
        if self.confusion is None:
            raise ValueError("the images have several labels each, so none counts for one class: leave out --per-class")
        rows = zip(self.classes, self.confusion.sum(1).tolist(), self.confusion.diagonal().tolist(), strict=True)
        return [{"class": name, "samples": samples, "correct": correct} for name, samples, correct in rows]


@dataclass
class _Subject:
    """A network, what it is evaluated on and how, and what is counted."""

    trained: Trained
    network: nn.Module
    data: EvalData
    device: torch.device
    precision: str
    batch_size: int

    def __post_init__(self) -> None:
        self.tally = Tally(len(self.data.classes), self.device)
        self.barred = self.accepted = self.targets = None
        metrics = self.trained.recipe.plugins.metrics if self.data.own else {}
        self.answers = Answers(metrics) if metrics else None
        if (targets := targets_of(self.data.source)) is not None:
            self.targets = torch.from_numpy(targets).to(self.device)
        if self.data.among is not None:
            self.barred = torch.ones(len(self.data.classes), dtype=torch.bool, device=self.device)
            self.barred[torch.from_numpy(self.data.among).to(self.device)] = False
        if self.data.accepted is not None:
            self.accepted = torch.from_numpy(self.data.accepted).to(self.device)

    def pass_key(self) -> tuple[Any, ...]:
        """Subjects of the same key are given the same batches."""
        recipe, augment = self.trained.recipe, self.trained.recipe.augment
        images = (augment.crop, augment.val_resize, augment.val_size, augment.interpolation)
        return id(self.data.source), self.device, self.batch_size, images, recipe.deterministic

    def count(self, batch: Batch) -> None:
        recipe, labels, indices = self.trained.recipe, batch.labels.to(self.device), batch.indices(self.device)
        with autocast(self.precision, self.device):
            logits = predict_logits(self.network, batch.images, recipe, self.device)
        if self.barred is not None:
            logits = logits.masked_fill(self.barred, -torch.inf)
        if self.accepted is not None:
            # Right where the answer is among an image's labels; where it is not, the first of them is missed.
            right, answer = self.accepted[indices], logits.topk(1).indices
            labels = torch.where((right == answer).any(1), answer[:, 0], right[:, 0])
        targets = None if self.targets is None else self.targets[indices]
        if self.answers is not None:
            self.answers.add(logits, labels if targets is None else targets, indices)
        count_logits(self.tally, logits, labels, indices, recipe, targets)

    def read(self, over_ranks: bool) -> dict[str, Any]:
        result = self.tally.read(over_ranks)
        # Of no image there is nothing to say.
        if self.answers is None or not result["samples"]:
            return result | {"metrics": {}}
        try:
            return result | {"metrics": self.answers.read(over_ranks)}
        except (Exception, SystemExit) as error:
            named = [*self.trained.recipe.plugins.metrics.values()]
            where = line_in(error, named) or "plugins.metrics: "
            raise ValueError(f"{where}{type(error).__name__}: {error}") from error


class _Pass(NamedTuple):
    """What was seen of a pass over the images, besides the counts."""

    images_per_second: float | None
    broken: list[str]


Watch = Callable[[Iterator[Batch], int], Iterable[Batch]]
"""Is handed the batches of a pass, and the number of images over all ranks, and hands the batches on."""


@torch.no_grad()
def evaluate(
    trained: Sequence[Trained],
    options: DataOptions = THE_RECIPES,
    over_ranks: bool = False,
    watch: Watch = lambda batches, _: batches,
    data: EvalData | None = None,
) -> list[Evaluation]:
    """Evaluate weights as in training, and leave the process as it was; one result each, in their order.

    over_ranks: share the images among the ranks of the process group, all of which call this and get the same.
    watch: to tell how far it is. data: of all of them, where it is open already; `options` say nothing then.
    Raises ValueError for recipes, data or weights that cannot be used.
    """
    subjects = _in_step(lambda: _subjects(trained, options, data), over_ranks)
    passes: dict[tuple[Any, ...], list[_Subject]] = {}
    for subject in subjects:
        passes.setdefault(subject.pass_key(), []).append(subject)
    found = {
        id(subject): result for group in passes.values() for subject, result in _evaluate(group, over_ranks, watch)
    }
    return [found[id(subject)] for subject in subjects]


def _in_step(task, over_ranks: bool):
    """On ranks that share a machine's files the first goes before the others, which find what it has made of them."""
    return together(task, int(os.environ.get("LOCAL_RANK", "0")), first_alone=True) if over_ranks else task()


def _subjects(trained: Sequence[Trained], options: DataOptions, given: EvalData | None) -> list[_Subject]:
    opened: list[tuple[Any, EvalData]] = []
    subjects = []
    for one in trained:
        recipe, on_cpu, notes = one.recipe, takes_cpu(one.recipe), [*one.notes]
        device = torch.device("cpu") if on_cpu else torch.device("cuda", torch.cuda.current_device())
        with own_settings(recipe, device):
            network = load_network(recipe, len(one.classes) or None, one.weights, device, notes.append)
        outputs = outputs_of(network, recipe.model, one.classes)
        # Networks of the same classes and data share the images, and with these the passes over them.
        asked = (recipe.data, one.classes, outputs)
        data = given or next((data for key, data in opened if key == asked), None)
        if data is None:
            data = open_eval_data(one, outputs, options)
            opened.append((asked, data))
        batch_size = recipe.eval.batch_size or _micro_batch(one.run_dir) or min(recipe.batch_size, _MOST_AT_ONCE)
        precision = evaluation_precision(recipe, device, notes.append)
        one = one._replace(notes=tuple(notes))
        subjects.append(_Subject(one, network, data, device, precision, batch_size))
    return subjects


def _micro_batch(run_dir: Path | None) -> int | None:
    """The batch the run itself evaluated in: in another one, rounding decides some close calls otherwise."""
    return None if run_dir is None else read_provenance(run_dir).get("plan", {}).get("micro_batch")


def _evaluate(group: list[_Subject], over_ranks: bool, watch: Watch) -> Iterator[tuple[_Subject, Evaluation]]:
    """Evaluate networks on the same batches."""
    first = group[0]
    with own_settings(first.trained.recipe, first.device):
        seen, results = _pass_over(group, over_ranks, watch)
    for subject, result in zip(group, results, strict=True):
        if not result["samples"]:
            kind = "validation image" if subject.data.own else "image"
            error = OfAllRanks if over_ranks else ValueError
            raise error(f"none of the {plural(len(subject.data.source), kind)} could be read")
        yield subject, _evaluation(subject, result, seen)


def _pass_over(group: list[_Subject], over_ranks: bool, watch: Watch) -> tuple[_Pass, list[dict[str, Any]]]:
    first, images, start, broken = group[0], 0, None, []
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if over_ranks else (0, 1)
    source = first.data.source
    batches = batches_of(source, first.trained.recipe, first.batch_size, first.device, rank, ranks)
    for batch in watch(batches, len(source)):
        broken += batch.broken
        if not len(batch.labels):
            continue
        for subject in group:
            subject.count(batch)
        if start is None:
            # Workers start, and kernels are chosen, in the first batch.
            if first.device.type == "cuda":
                torch.cuda.synchronize(first.device)
            start = time.perf_counter()
        else:
            images += len(batch.labels)
    results = [subject.read(over_ranks) for subject in group]
    seconds = 0.0 if start is None else time.perf_counter() - start
    mine = images, seconds, broken
    parts = of_all_ranks(mine) if over_ranks else [mine]
    total = sum(part[0] for part in parts)
    speed = total / max(part[1] for part in parts) if total else None
    return _Pass(speed, [image for part in parts for image in part[2]]), results


def _not_numbers(loss: float) -> list[str]:
    return [] if math.isfinite(loss) else ["the network answers some images with nan: its weights are broken"]


def _evaluation(subject: _Subject, result: Mapping[str, Any], seen: _Pass) -> Evaluation:
    trained, data = subject.trained, subject.data
    real = data.accepted is not None
    whole = data.own and not real and data.among is None
    return Evaluation(
        top1=result["top1"],
        top5=None if real else result["top5"],
        loss=None if real else result["loss"],
        samples=result["samples"],
        weights=trained.weights,
        run=trained.run_dir,
        warnings=(*(f"cannot read {image}" for image in seen.broken), *_not_numbers(result["loss"])),
        name=trained.name,
        averaged=trained.averaged,
        ece=result["ece"],
        metrics=result["metrics"],
        images_per_second=seen.images_per_second,
        recipe=trained.recipe,
        classes=data.classes,
        answered=len(data.classes) if data.among is None else len(data.among),
        confusion=result["confusion"],
        calibration=result["calibration"],
        confused=result["confused"],
        mistakes=described(result["mistakes"], data.source.describe),
        notes=(*trained.notes, *data.notes),
        evidence=judged(trained, result["top1"], data.training_images) if whole else None,
    )
