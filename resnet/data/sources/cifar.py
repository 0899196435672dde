"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) through torchvision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from recipes.schema.data import CifarData
from resnet.data.sources.files import expanded


class Cifar:
    """A source (see `source.Source`) of images in memory, uint8 (n, 32, 32, 3)."""

    def __init__(self, images: np.ndarray, labels: list[int], classes: list[str], where: str) -> None:
        self._images, self._where = images, where
        self.labels = np.array(labels, dtype=np.int64)
        self.classes = classes

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self._images[index]).permute(2, 0, 1)

    def describe(self, index: int) -> str:
        return f"{self._where} image {index}"


def open_cifar(data: CifarData) -> tuple[Cifar, Cifar]:
    """The official training and test images; the latter from `val` if it is given."""
    return _split(data, data.train, True), _split(data, data.val or data.train, False)


def _split(data: CifarData, path: str, train: bool) -> Cifar:
    from torchvision import datasets  # takes seconds

    kind = datasets.CIFAR10 if data.source == "cifar10" else datasets.CIFAR100
    folder = expanded(path)
    try:
        try:
            found = kind(folder, train=train)
        except RuntimeError:
            if not data.download:
                raise
            found = _download(kind, folder, train)
    except (OSError, RuntimeError) as error:
        if there := [file for file in (folder / kind.filename, folder / kind.base_folder) if file.exists()]:
            raise ValueError(
                f"data.train={path}: {there[0]} is damaged, or not what {kind.url} holds ({error}): remove it to "
                "fetch it again, or put a whole one in its place"
            ) from None
        fetch = "it could not be downloaded" if data.download else "data.download is false"
        raise ValueError(
            f"data.train={path}: no {data.source} in {folder}, and {fetch} ({error}). Unpack {kind.url} there, or read "
            "parquet files with data.source=huggingface data.train=FOLDER"
        ) from None
    return Cifar(found.data, found.targets, found.classes, f"{data.source} {'train' if train else 'test'}")


def _download(kind, folder: Path, train: bool):
    """Download once, though all ranks may ask at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{kind.__name__}.lock"):
        return kind(folder, train=train, download=True)
