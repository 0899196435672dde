"""The rows of the table per image: from a file's bytes to normalised float32 in batches, by us and by others.

A row is made for a recipe: what its `augment` says is what all of them do, as far as each can.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import io as vision_io
from torchvision import transforms as v1
from torchvision.transforms import v2

from recipes.schema.augment import Augment
from recipes.schema.recipe import Recipe
from resnet.data.batches import Key
from resnet.data.decode import decode
from resnet.data.encoded import micro_batches
from resnet.data.on_device import normalise
from resnet.inference import network_input
from resnet.tools.prepare.forms import Form
from tests.bench.input import dali
from tests.bench.input.work import SMALLER, Held, Work

Row = Callable[[Work], Any]
"""Does the work: gives a batch float32 (N, 3, H, W); or, where files are only decoded, their pixels uint8 (H, W, 3)."""
_CPU = torch.device("cpu")
_BINS = 31
"""Magnitudes of torchvision's RandAugment, of which a recipe's 0 to 10 are shares."""


class Made(NamedTuple):
    needs: str
    """The package, as it is imported."""
    make: Callable[[Recipe, Held], Row]
    same_crops: bool = True
    """Whether it draws from torch's generator as ours does, so that pixels can be compared."""


def _one_by_one(transform: Callable[[bytes], Tensor]) -> Row:
    """A transform of one file as a row."""

    def row(work: Work) -> Tensor:
        images = []
        for file, seed in zip(work.files, work.seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            images.append(transform(file))
        return torch.stack(images)

    return row


def _opened(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB")


def reference_transform(augment: Augment) -> Callable[[Image.Image], Tensor]:
    """torchvision's classification reference on PIL images: crop, flip, policy, to tensor, normalise."""
    filters = {"bilinear": v1.InterpolationMode.BILINEAR, "bicubic": v1.InterpolationMode.BICUBIC}
    steps: list[Any] = [
        v1.RandomResizedCrop(augment.train_size, augment.scale, augment.ratio, filters[augment.interpolation]),
        v1.RandomHorizontalFlip(augment.hflip),
    ]
    if augment.policy == "randaugment":
        magnitude = round(augment.randaugment_magnitude / 10 * (_BINS - 1))
        steps.append(v1.RandAugment(augment.randaugment_ops, magnitude, _BINS, v1.InterpolationMode.BILINEAR))
    elif augment.policy == "trivial_augment_wide":
        steps.append(v1.TrivialAugmentWide(interpolation=v1.InterpolationMode.BILINEAR))
    return v1.Compose([*steps, v1.ToTensor(), v1.Normalize(augment.mean, augment.std)])


def reference(recipe: Recipe, _: Held) -> Row:
    transform = reference_transform(recipe.augment)
    return _one_by_one(lambda file: transform(_opened(file)))


def ours(recipe: Recipe, held: Held) -> Row:
    """Micro-batches as training makes them, normalised as training normalises them."""
    batches = micro_batches(recipe, held, held, held.order(), _CPU)

    def row(work: Work) -> Tensor:
        key = Key(work.epoch, work.start, work.start + len(work.files), recipe.augment.train_size)
        return network_input(batches[key].images, recipe, _CPU, torch.float32)

    return row


def _decoded(recipe: Recipe, where: str) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"decode": where})})


def _prepared(recipe: Recipe, held: Held, form: Form) -> Row:
    return ours(recipe, Held(held.files, form))


def timm_transform(augment: Augment, policy: str | None = None) -> Any:
    """timm's own Pillow transforms: its training's defaults but for what the recipe says."""
    from timm.data.transforms_factory import create_transform

    return create_transform(
        augment.train_size,
        is_training=True,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip=augment.hflip,
        color_jitter=0.0,
        auto_augment=policy,
        interpolation=augment.interpolation,
        mean=augment.mean,
        std=augment.std,
    )


def timm(recipe: Recipe, _: Held, policy: str | None = None) -> Row:
    transform = timm_transform(recipe.augment, policy)
    # It draws its boxes by Python's generator: from torch's they are those of the others. The work is the same.
    transform.transforms[0].get_params = v1.RandomResizedCrop.get_params
    return _one_by_one(lambda file: transform(_opened(file)))


def hugging_face(recipe: Recipe, _: Held) -> Row:
    """`datasets` decodes, and the transforms of Hugging Face's example are torchvision's."""
    from datasets import Image as Column

    column, transform = Column(), reference_transform(recipe.augment)
    return _one_by_one(
        lambda file: transform(column.decode_example({"bytes": file, "path": None}).convert("RGB"))  # pyright: ignore
    )


def _v2_row(recipe: Recipe, decoded: Callable[[bytes], Tensor]) -> Row:
    """Decoded as is, cropped by torchvision's v2 transforms on tensors, and normalised as a batch."""
    augment = recipe.augment
    crop = v2.Compose(
        [
            v2.RandomResizedCrop(
                augment.train_size, augment.scale, augment.ratio, v2.InterpolationMode(augment.interpolation)
            ),
            v2.RandomHorizontalFlip(augment.hflip),
        ]
    )
    return _normalised(recipe, _one_by_one(lambda file: crop(decoded(file))))


def _normalised(recipe: Recipe, row: Row) -> Row:
    mean, std = recipe.augment.mean, recipe.augment.std
    return lambda work: normalise(row(work), mean, std, torch.float32)


def _by_torchvision(file: bytes) -> Tensor:
    data = torch.frombuffer(bytearray(file), dtype=torch.uint8)
    return vision_io.decode_image(data, vision_io.ImageReadMode.RGB)


def _by_torchcodec(file: bytes) -> Tensor:
    from torchcodec.decoders import decode_image

    return decode_image(file)


def _by_simplejpeg(file: bytes) -> np.ndarray:
    return import_module("simplejpeg").decode_jpeg(file, strict=False)


def _opencv(recipe: Recipe, _: Held, filter_name: str) -> Row:
    cv2 = import_module("cv2")
    cv2.setNumThreads(0)
    augment, size, how = recipe.augment, recipe.augment.train_size, getattr(cv2, filter_name)
    scale, ratio = list(augment.scale), list(augment.ratio)

    def crop(file: bytes) -> Tensor:
        image = _by_simplejpeg(file)
        box = v1.RandomResizedCrop.get_params(torch.empty((3, *image.shape[:2]), device="meta"), scale, ratio)
        top, left, height, width = box
        resized = cv2.resize(image[top : top + height, left : left + width], (size, size), interpolation=how)
        if torch.rand(1) < augment.hflip:
            resized = cv2.flip(resized, 1)
        return torch.from_numpy(resized).permute(2, 0, 1)

    return _normalised(recipe, _one_by_one(crop))


def _decoding(decoded: Callable[[bytes], Any]) -> Callable[[Recipe, Held], Row]:
    return lambda recipe, held: lambda work: [decoded(file) for file in work.files]


PLAIN = {
    "reference (PIL, torchvision v1)": Made("torchvision", reference),
    "reference again (control)": Made("torchvision", reference),
    "ours": Made("torch", ours),
    "ours, data.decode=region": Made("nvidia.nvimgcodec", lambda recipe, held: ours(_decoded(recipe, "region"), held)),
    "torchvision decode + v2 crop": Made("torchvision", lambda recipe, _: _v2_row(recipe, _by_torchvision)),
    "torchcodec decode + v2 crop": Made("torchcodec", lambda recipe, _: _v2_row(recipe, _by_torchcodec)),
    "simplejpeg + OpenCV AREA": Made("cv2", partial(_opencv, filter_name="INTER_AREA")),
    "simplejpeg + OpenCV LINEAR": Made("cv2", partial(_opencv, filter_name="INTER_LINEAR")),
    "timm": Made("timm", timm),
    "Hugging Face datasets": Made("datasets", hugging_face),
    "DALI, CPU operators": Made("nvidia.dali", lambda recipe, _: dali.per_image(recipe), same_crops=False),
}
FORMS = {
    "prepare --max-side 400": SMALLER,
    "prepare --short-side 256": Form("short_side", 256, 90),
    "prepare --raw 256": Form("raw", 256),
}
PREPARED = {f"ours, {name}": Made("torch", partial(_prepared, form=form), False) for name, form in FORMS.items()}
"""Of the same draws come other boxes in images of another size."""
PREPARED["ours, prepare --max-side 400, data.decode=region"] = Made(
    "nvidia.nvimgcodec", lambda recipe, held: _prepared(_decoded(recipe, "region"), held, SMALLER), False
)
DECODERS = {
    "decode alone: PIL": Made("PIL", _decoding(lambda file: np.asarray(_opened(file)))),
    "decode alone: ours": Made("torch", _decoding(lambda file: decode(file).permute(1, 2, 0))),
    "decode alone: torchvision": Made("torchvision", _decoding(lambda file: _by_torchvision(file).permute(1, 2, 0))),
    "decode alone: torchcodec": Made("torchcodec", _decoding(lambda file: _by_torchcodec(file).permute(1, 2, 0))),
    "decode alone: simplejpeg": Made("simplejpeg", _decoding(_by_simplejpeg)),
}


def with_policy(*policies: str) -> dict[str, Made]:
    """Rows with a policy, which draws what it does for itself in each of them; timm's by its own words."""
    first = {name: PLAIN[name]._replace(same_crops=False) for name in list(PLAIN)[:4]}
    return first | {f"timm {words}": Made("timm", partial(timm, policy=words), False) for words in policies}
