"""Whole loaders with worker processes: from files on disk to normalised float32 batches in the training process.

Each is made as its project documents it, for one pass over the same images in random order.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from recipes.schema.recipe import Recipe
from resnet.build import build_order
from resnet.data.batches import Key
from resnet.data.encoded import micro_batches
from resnet.data.loader import Loader
from resnet.data.sources.registry import open_sources
from resnet.inference import network_input
from resnet.tools.prepare.forms import Form
from resnet.tools.prepare.prepare import prepare
from tests.bench.input.dali import loader as dali_batches
from tests.bench.input.rows import FORMS, reference_transform
from tests.bench.input.turns import Clock, Spent, Turn
from tests.bench.input.work import recipe_of

PREFETCH = 2
"""Batches that each worker makes ahead: PyTorch's and ours by default."""


class Place(NamedTuple):
    """Where the images are, and what is written there of them."""

    images: Path
    """An image folder."""
    scratch: Path
    """Made by the bench, and removed by it."""
    recipe: Recipe
    images_there: int
    batch: int

    def made(self, name: str, write: Callable[[Path], object]) -> Path:
        """A folder of the scratch, written at the first call."""
        folder = self.scratch / name
        if not folder.exists():
            folder.mkdir()
            write(folder)
        return folder


Make = Callable[[Place, int], Iterator[Tensor]]
"""Batches (N, 3, H, W) of a place, from so many workers; ended by closing it."""


def turn_of(make: Make, place: Place, workers: int) -> Turn:
    """From the first batch to the last of a pass: starting workers is not counted."""

    def turn(_: int) -> Spent:
        with contextlib.closing(make(place, workers)) as batches:  # pyright: ignore[reportArgumentType]
            next(batches)
            clock = Clock()
            images = sum(map(len, itertools.islice(batches, place.images_there // place.batch - 1)))
            return clock.spent(images)

    return turn


def _loaded(place: Place, dataset: Any, workers: int, **more: Any) -> Iterator[Tensor]:
    loader = DataLoader(dataset, place.batch, num_workers=workers, prefetch_factor=PREFETCH, **more)
    yield from (batch["image"] if isinstance(batch, dict) else batch[0] for batch in loader)


def reference(place: Place, workers: int) -> Iterator[Tensor]:
    dataset = ImageFolder(place.images, reference_transform(place.recipe.augment))  # pyright: ignore
    yield from _loaded(place, dataset, workers, shuffle=True, drop_last=True)


def timm(place: Place, workers: int) -> Iterator[Tensor]:
    """On a CPU timm's prefetcher, which normalises on the device, is not there: its transforms do it in the workers."""
    from timm.data.dataset import ImageDataset
    from timm.data.loader import create_loader

    augment = place.recipe.augment
    loader = create_loader(
        ImageDataset(str(place.images)),
        input_size=augment.train_size,
        batch_size=place.batch,
        is_training=True,
        use_prefetcher=False,
        color_jitter=0.0,
        interpolation=augment.interpolation,
        num_workers=workers,
        persistent_workers=False,
        device=torch.device("cpu"),
    )
    yield from (images for images, _ in loader)


def hugging_face(place: Place, workers: int) -> Iterator[Tensor]:
    import datasets

    transform = reference_transform(place.recipe.augment)

    def transformed(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"image": [transform(image.convert("RGB")) for image in rows["image"]], "label": rows["label"]}

    dataset = datasets.load_from_disk(str(place.made("arrow", partial(_write_arrow, place))))
    dataset.set_transform(transformed)
    yield from _loaded(place, dataset, workers, shuffle=True, drop_last=True)


def _write_arrow(place: Place, folder: Path) -> None:
    _image_folder(place).save_to_disk(str(folder))


def _image_folder(place: Place) -> Any:
    import datasets

    datasets.disable_progress_bars()
    # Given a folder alone it would look for splits in the names of files, as in `bullet_train.jpg`.
    files = {"train": [str(file) for file, _ in ImageFolder(place.images).samples]}
    cache = str(place.scratch / "hugging_face")
    return datasets.load_dataset("imagefolder", data_files=files, split="train", drop_labels=False, cache_dir=cache)


def webdataset(place: Place, workers: int) -> Iterator[Tensor]:
    wds = import_module("webdataset")
    urls = sorted(str(tar) for tar in place.made("tar", partial(_write_tars, place)).glob("*.tar"))
    transform = reference_transform(place.recipe.augment)
    dataset = wds.WebDataset(urls, shardshuffle=len(urls)).shuffle(100).decode("pilrgb")
    dataset = dataset.to_tuple("jpg", "cls").map_tuple(transform, int)
    yield from _loaded(place, dataset, workers, drop_last=True)


def _write_tars(place: Place, folder: Path, tars: int = 4) -> None:
    """A worker reads whole tars."""
    wds = import_module("webdataset")
    samples = ImageFolder(place.images).samples
    for number in range(tars):
        with wds.TarWriter(str(folder / f"{number}.tar")) as tar:
            for index in range(number, len(samples), tars):
                path, label = samples[index]
                tar.write({"__key__": f"{index:08}", "jpg": Path(path).read_bytes(), "cls": label})


def dali(place: Place, workers: int) -> Iterator[Tensor]:
    yield from dali_batches(place.images, place.recipe, workers, place.batch)


def ffcv(place: Place, workers: int) -> Iterator[Tensor]:
    """As ffcv-imagenet has it: shorter sides of 400 px at most, half of the images as JPEGs of quality 90."""
    fields, loaders, does = (import_module(f"ffcv.{name}") for name in ("fields", "loader", "transforms"))

    def write(folder: Path) -> None:
        how = {"write_mode": "proportion", "max_resolution": 400, "compress_probability": 0.5, "jpeg_quality": 90}
        columns = {"image": fields.RGBImageField(**how), "label": fields.IntField()}
        writer = import_module("ffcv.writer").DatasetWriter(str(folder / "images.beton"), columns)
        writer.from_indexed_dataset(ImageFolder(place.images))

    augment, decoders = place.recipe.augment, import_module("ffcv.fields.decoders")
    mean, std = (255 * np.array(of) for of in (augment.mean, augment.std))
    crop = decoders.RandomResizedCropRGBImageDecoder((augment.train_size, augment.train_size))
    image = [crop, does.RandomHorizontalFlip(augment.hflip), does.ToTensor(), does.ToTorchImage()]
    image.append(does.NormalizeImage(mean, std, np.float32))
    pipelines = {"image": image, "label": [decoders.IntDecoder(), does.ToTensor()]}
    order, file = loaders.OrderOption.RANDOM, str(place.made("beton", write) / "images.beton")
    loader = loaders.Loader(file, place.batch, workers, order=order, drop_last=True, pipelines=pipelines)
    yield from (images for images, _ in loader)


def ours(place: Place, workers: int, data: Callable[[Place], dict[str, Any]]) -> Iterator[Tensor]:
    """Our loader over the images as `data` (keys of a recipe's) has them, normalised as training does it."""
    keys = {f"data.{key}": value for key, value in data(place).items()}
    recipe = recipe_of("resnet50_imagenet", {**keys, "batch_size": place.batch})
    train, _ = open_sources(recipe.data)
    order, cpu = build_order(recipe, train), torch.device("cpu")
    loader = Loader(micro_batches(recipe, train, train, order, cpu), _keys(place), cpu, workers, PREFETCH)
    try:
        yield from (network_input(batch.images, recipe, cpu, torch.float32) for batch in loader)
    finally:
        loader.end()


def _keys(place: Place) -> list[Key]:
    size, starts = place.recipe.augment.train_size, range(0, place.images_there - place.batch + 1, place.batch)
    return [Key(0, start, start + place.batch, size) for start in starts]


def _files(place: Place) -> dict[str, Any]:
    return {"train": str(place.images), "val": str(place.images)}


def _regions(place: Place) -> dict[str, Any]:
    return {**_files(place), "decode": "region"}


def _parquet(place: Place) -> dict[str, Any]:
    folder = place.made("parquet", lambda folder: _image_folder(place).to_parquet(folder / "train.parquet"))
    return {"source": "huggingface", "train": str(folder), "val": None, "val_split": "train"}


def _shards(place: Place, form: Form) -> dict[str, Any]:
    """What `resnet prepare` makes of the images."""
    data = recipe_of("resnet50_imagenet", {f"data.{key}": value for key, value in _files(place).items()}).data
    folder = place.made(f"shards-{form.kind}", lambda folder: prepare(data, folder, form, workers=1))
    return {"source": "shards", "train": str(folder), "val": None}


class Loaded(NamedTuple):
    needs: str
    make: Make
    workers: int | None = None
    """None: as many as are asked for."""


LOADERS = {
    "reference (torchvision, DataLoader)": Loaded("torchvision", reference),
    "reference again (control)": Loaded("torchvision", reference),
    "reference (torchvision, DataLoader), 1 worker": Loaded("torchvision", reference, 1),
    "timm create_loader": Loaded("timm", timm),
    "Hugging Face datasets": Loaded("datasets", hugging_face),
    "WebDataset": Loaded("webdataset", webdataset),
    "DALI, CPU operators": Loaded("nvidia.dali", dali),
    "FFCV": Loaded("ffcv", ffcv),
    "ours, files": Loaded("torch", partial(ours, data=_files)),
    "ours, files, 1 worker": Loaded("torch", partial(ours, data=_files), 1),
    "ours, files, data.decode=region": Loaded("nvidia.nvimgcodec", partial(ours, data=_regions)),
    "ours, parquet": Loaded("datasets", partial(ours, data=_parquet)),
}
LOADERS |= {
    f"ours, {name}": Loaded("torch", partial(ours, data=partial(_shards, form=form)))
    for name, form in {"prepare --keep": Form(), **FORMS}.items()
}
ALONE = {name.removesuffix(", 1 worker"): name for name in LOADERS if name.endswith(", 1 worker")}
"""By the row with several workers, the one with one."""
