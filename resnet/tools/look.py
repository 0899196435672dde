"""`resnet look`: the images of a training step exactly as the network gets them, and what was done to each."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from recipes.plan import Plan, make_plan
from recipes.schema.augment import Augment
from recipes.schema.recipe import Recipe
from resnet.build import build_data, build_order
from resnet.checkpoint.commit import newest_first
from resnet.checkpoint.resume import data_digest
from resnet.checkpoint.snapshot import read_rest
from resnet.data import bands
from resnet.data.batches import Key, MicroBatches, read_image, training_keys
from resnet.data.draws import Drawn
from resnet.data.order import Kind, kind_of
from resnet.data.sources.source import Source
from resnet.inference import input_dtype
from resnet.rundir.provenance import read_provenance
from resnet.tools.forward import DECODED_HERE
from resnet.tools.picture_grid import SIDE, Tile, draw_grid
from resnet.training_input import TrainingInput, training_input

Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""


@dataclass
class Sample:
    """One image of a step: where it comes from and what was done to it."""

    position: int
    """In the epoch's order, counted from 0."""
    slot: int
    """The micro-batch within the step, counted over all devices."""
    index: int
    """Of the image among the training images."""
    file: str
    label: str
    size: tuple[int, int]
    """Height and width of the whole image in pixels."""
    crop: Box
    """What was cut out, in the whole image's pixels; beyond its edges where it was padded before."""
    mirrored: bool = False
    flipped: bool = False
    """Upside down."""
    operations: list[str] = field(default_factory=list)
    """Rotation, colours and the policy's operations with their magnitudes, in their order."""
    erased: Box | None = None
    """The rectangle that random erasing blanked, in the network's pixels."""
    mixed_with: int | None = None
    """Position of the image it was mixed with."""
    other_label: str | None = None
    share: float = 1.0
    """Its own share of its target; the rest is the other image's."""
    mixed_box: Box | None = None
    """CutMix: what the other image fills, in the network's pixels; None: mixup, or nothing."""
    broken: list[str] = field(default_factory=list)
    """Unreadable images that it stands in for, each with the reason."""

    @property
    def label_text(self) -> str:
        """As in `ring`, or `ring 0.73 + dots 0.27` where two images were mixed."""
        if self.other_label is None:
            return self.label
        return f"{self.label} {self.share:.2f} + {self.other_label} {1 - self.share:.2f}"


class Seen(NamedTuple):
    """What a step trains on."""

    step: int
    """Counted from 1, as in the log: the step after which it says `step`."""
    epoch: float
    """Done with it, as in the log."""
    batch_size: int
    """Images of the whole step."""
    micro_batch: int
    samples: list[Sample]
    inputs: list[torch.Tensor]
    """What the network was given, (N, C, H, W) for each of the first micro-batches that hold the samples."""
    targets: list[torch.Tensor | None]
    """Likewise (N, classes), as `resnet.training_input.TrainingInput` has them."""
    images: np.ndarray
    """uint8 (samples, H, W, 3): the same to be looked at, no longer normalised."""
    originals: list[np.ndarray]
    """uint8 (H, W, 3) of each sample, where they were asked for."""
    notes: list[str]
    """What the user should know."""


def look(
    recipe: Recipe,
    step: int = 1,
    count: int = 32,
    *,
    sources: tuple[Source, Source] | None = None,
    micro_batch: int | None = None,
    precision: str = "no",
    originals: bool = False,
    order_kind: Kind = "bijection",
) -> Seen:
    """Prepare the first `count` images of a training step as training does, on the CPU.

    step: counted from 1, as in the log. sources: training and validation images, where they are open already.
    micro_batch: of the run, which mixing depends on; None: as on one device. precision: Accelerate's name of it.
    order_kind: of the run. The process is left as it was, random numbers too. Raises ValueError for data that cannot be
    used, and a step that the run does not have.
    """
    if count < 1:
        raise ValueError(f"count={count}: it takes 1 image or more")
    train, val = sources or build_data(recipe)
    order = build_order(recipe, train, order_kind)
    plan = make_plan(recipe, len(order), 1, micro_batch)
    if not 1 <= step <= plan.end_step:
        raise ValueError(f"step {step}: this training has the steps 1 to {plan.end_step}")
    batches = _NotedBatches(train, val, order, recipe.augment)
    batches.keeps_originals = originals
    dtype, given = input_dtype(recipe, precision), []
    with torch.random.fork_rng(devices=[]):
        for slot, key in enumerate(training_keys(plan, 0, step - 1)):
            if len(batches.samples) >= count:
                break
            given.append(_prepare(batches, key, plan, step - 1, slot, dtype))
    seen = batches.samples[:count]
    shown = torch.cat([viewable(one.images, recipe.augment) for one in given])[:count]
    inputs, targets = [one.images for one in given], [one.targets for one in given]
    epoch, size = plan.epoch(step), plan.samples_of_step(step - 1)
    whole = batches.originals[:count]
    notes = [DECODED_HERE] if recipe.data.decode == "gpu" else []
    return Seen(step, epoch, size, plan.micro_batch, seen, inputs, targets, bands.visible(shown.numpy()), whole, notes)


def look_at_run(
    run_dir: Path, recipe: Recipe, step: int = 1, count: int = 32, originals: bool = False, verify: bool = True
) -> Seen:
    """As `look`, of a run: in its micro-batches and precision.

    recipe: the run's, with data paths of this machine. verify: compare the data with what the newest checkpoint says.
    """
    facts, sources = facts_of(run_dir, with_data=verify), build_data(recipe)
    digest = facts.pop("digest")
    seen = look(recipe, step, count, sources=sources, originals=originals, **facts)
    if _operates_on_gpu(run_dir, recipe.augment):
        told = "rotation, colours and policy were applied by a GPU in this run: "
        seen.notes.append(f"{told}its pixels differ from these by a level, and by more where operations follow")
    if digest is not None and digest != data_digest(sources[0]):
        told = f"{recipe.data.train} is not the data that {run_dir} was trained on (other images or classes): "
        seen.notes.append(f"{told}these are not the images that it saw")
    return seen


def _operates_on_gpu(run_dir: Path, augment: Augment) -> bool:
    devices = read_provenance(run_dir).get("devices") or ["CPU"]
    return devices[0] != "CPU" and bool(augment.policy != "none" or augment.color_jitter or augment.rotation)


def facts_of(run_dir: Path, with_data: bool = True) -> dict[str, Any]:
    """What a run has noted of itself that `look` takes, and its data's digest by the newest checkpoint (None: none)."""
    plan, digest = read_provenance(run_dir).get("plan", {}), None
    if with_data and (checkpoints := newest_first(run_dir / "checkpoints")):
        digest = read_rest(checkpoints[0]).get("data")
    noted = {"micro_batch": plan.get("micro_batch"), "precision": plan.get("precision", "no")}
    return {**noted, "order_kind": kind_of(plan), "digest": digest}


class _NotedBatches(MicroBatches):
    """Micro-batches as in training that note what they are made of: the same code draws the same numbers."""

    samples: list[Sample]
    originals: list[np.ndarray]
    keeps_originals = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.samples, self.originals = [], []

    def _training_image(self, size: int, seed: int, index: int) -> tuple[torch.Tensor, Drawn, int]:
        image, drawn, label = super()._training_image(size, seed, index)
        whole = read_image(self.train, index)
        shape = whole.shape[-2], whole.shape[-1]
        file, box = self.train.describe(index), _crop_box(self.augment, shape, drawn.crop)
        sample = Sample(0, 0, index, file, self.train.classes[label], shape, box)
        sample.mirrored, sample.flipped = drawn.mirrored, drawn.flipped
        sample.operations = [f"{name} {magnitude:.3g}" if magnitude else name for name, magnitude in drawn.operations]
        self.samples.append(sample)
        if self.keeps_originals:
            self.originals.append(bands.visible(whole.permute(1, 2, 0).contiguous().numpy()))
        return image, drawn, label

    def _first_whole(self, key: Key, row: int, index: int, broken: list[str], make: Any) -> Any:
        before = len(broken)
        made = super()._first_whole(key, row, index, broken, make)
        self.samples[-1].position, self.samples[-1].broken = key.start + row, broken[before:]
        return made


def _crop_box(augment: Augment, whole: tuple[int, int], crop: Box) -> Box:
    """A crop's box in the whole image's pixels; of crop=pad, the image was squeezed to a square first."""
    if augment.crop != "pad":
        return crop
    top, left, size, _ = crop
    down, across = whole[0] / size, whole[1] / size
    return round((top - augment.padding) * down), round((left - augment.padding) * across), *whole


def _prepare(batches: _NotedBatches, key: Key, plan: Plan, step: int, slot: int, dtype: torch.dtype) -> TrainingInput:
    """A micro-batch as the network gets it; what was erased and mixed is noted with its samples."""
    first, classes = len(batches.samples), batches.train.classes
    batch = batches[key]
    given = training_input(batch, plan.recipe, step, slot, len(classes), torch.device("cpu"), dtype)
    samples = batches.samples[first:]
    for row, sample in enumerate(samples):
        sample.slot = slot
        if batch.erased is not None and batch.erased[row, 2]:
            top, left, height, width = batch.erased[row].tolist()
            sample.erased = top, left, height, width
        if given.mixing is not None:
            other = samples[row - 1]
            sample.mixed_with, sample.other_label = other.position, other.label
            sample.share, sample.mixed_box = given.mixing.lam, given.mixing.box
    return given


def viewable(images: torch.Tensor, augment: Augment) -> torch.Tensor:
    """Normalised (N, C, H, W) -> uint8 (N, H, W, C), as it was before."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (augment.mean, augment.std))
    scaled = images.float().mul(std).add(mean).mul(255).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def tiles_of(seen: Seen) -> list[Tile]:
    """A tile for each image: its label, its file, and what was done to it; before it the whole one, if it is there."""
    tiles = []
    for number, (sample, image) in enumerate(zip(seen.samples, seen.images, strict=True)):
        name = short_name(sample.file)
        if seen.originals:
            facts = f"whole {sample.size[1]}x{sample.size[0]}", f"crop {box_text(sample.crop)}"
            tiles.append(Tile(_with_box(seen.originals[number], sample.crop), (name, *facts)))
        labels = sample.label_text.split(" + ")
        lines = [labels[0], *(f"+ {label}" for label in labels[1:]), name, *sample.operations, _marks(sample)]
        tiles.append(Tile(image, [line for line in lines if line]))
    return tiles


def _with_box(image: np.ndarray, box: Box) -> Image.Image:
    """The whole image with the crop's outline; what is small is enlarged first, for thin lines."""
    scale = max(1, SIDE // max(image.shape))
    picture = Image.fromarray(image.repeat(scale, 0).repeat(scale, 1))
    top, left, height, width = (scale * side for side in box)
    pen, thick = ImageDraw.Draw(picture), max(1, round(max(picture.size) / 100))
    for colour, line in (("black", 2 * thick), ("yellow", thick)):
        pen.rectangle((left, top, left + width - 1, top + height - 1), outline=colour, width=line)
    return picture


def box_text(box: Box | None) -> str:
    """As in 120x96+30+12: width x height + left + top, as ImageMagick and X write it."""
    return "" if box is None else f"{box[3]}x{box[2]}{box[1]:+d}{box[0]:+d}"


def done_to(sample: Sample) -> str:
    """What was done to an image beside the crop, in words."""
    return ", ".join(filter(None, [*sample.operations, _marks(sample)]))


def _marks(sample: Sample) -> str:
    done = ["mirrored"] * sample.mirrored + ["upside down"] * sample.flipped + ["erased"] * (sample.erased is not None)
    if sample.mixed_with is not None:
        done.append("cutmix" if sample.mixed_box else "mixup")
    return ", ".join(done)


def short_name(file: str) -> str:
    """A file with the folder it lies in, which is often its class; of a row of a table its last part."""
    parts = file.split("/")
    return "/".join(parts[-2:]) if "." in parts[-1] else parts[-1]


def draw_seen(seen: Seen, path: Path | None = None, title: str = "") -> bytes:
    """The images as one PNG, also written to `path`."""
    # With originals an even number of columns, so that each stands beside its image.
    columns = 2 * max(2, math.ceil(math.sqrt(len(seen.samples)) / 2)) if seen.originals else None
    return draw_grid(tiles_of(seen), path, columns, title)


def as_json(seen: Seen) -> dict[str, Any]:
    """All that is known of the step's images, for JSON."""
    figures = {name: getattr(seen, name) for name in ("step", "epoch", "batch_size", "micro_batch", "notes")}
    return {**figures, "images": [asdict(sample) | {"label_text": sample.label_text} for sample in seen.samples]}
