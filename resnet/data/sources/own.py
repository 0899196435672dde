"""A source that the user wrote (`data.plugin`), checked and in the types that everything else takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from recipes.schema.data import PluginData
from resnet.plugins import PluginError, call


class Own:
    """The user's source as a `source.Source`."""

    def __init__(self, source: Any, where: str) -> None:
        self._source, self._where = source, where
        self.channels = 3
        """That its tensors have to have; of one, those of three can be made."""
        for name in ("classes", "__len__", "read", "describe"):
            if not hasattr(source, name):
                raise ValueError(f"{where} makes a {type(source).__name__} without {name}")
        self.classes = [str(name) for name in source.classes]
        targets = getattr(source, "targets", None)
        self.targets = None if targets is None else np.ascontiguousarray(targets, dtype=np.float32)
        if self.targets is not None and self.targets.shape != (wanted := (len(source), len(self.classes))):
            raise ValueError(f"{where} has targets of shape {self.targets.shape}, not (images, classes) {wanted}")
        labels = getattr(source, "labels", None)
        if labels is None and self.targets is None:
            raise ValueError(f"{where} has neither labels, (n,), nor targets, (n, classes)")
        # Of several labels one stands for the image where a class is needed: for its share of a split.
        self.labels = np.asarray(labels if self.targets is None else self.targets.argmax(1), dtype=np.int64)
        if self.labels.shape != (len(source),):
            raise ValueError(f"{where} has labels of shape {self.labels.shape}, and {len(source)} images")
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise ValueError(f"{where} has labels that are no index into its {len(self.classes)} classes")

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes | torch.Tensor:
        """As `Source.read`. Raises PluginError for what is no image: no other stands in for one of a wrong type."""
        try:
            image = self._source.read(index)
        except SystemExit as error:
            raise PluginError(f"{self._where}: read({index}) leaves the program (SystemExit: {error})") from error
        if isinstance(image, bytes):
            return image
        made = type(image).__name__
        if isinstance(image, torch.Tensor):
            channels = (1, 3) if self.channels == 1 else (self.channels,)
            if image.dtype == torch.uint8 and image.dim() == 3 and len(image) in channels and image.numel():
                return image
            made = f"a tensor {str(image.dtype).removeprefix('torch.')} {tuple(image.shape)}"
        wanted = f"the bytes of a file, or a tensor uint8 ({self.channels}, height, width)"
        raise PluginError(f"{self._where}: read({index}) has to give {wanted}, not {made} ({self.describe(index)})")

    def describe(self, index: int) -> str:
        return str(self._source.describe(index))


def open_own(data: PluginData) -> tuple[Own, Own | None]:
    """Training and validation images. Raises ValueError where the plugin fails, or is no source."""

    def opened(train: bool) -> Own:
        return Own(call(data.plugin, "data.plugin", train=train), f"data.plugin={data.plugin.path} (train={train})")

    train = opened(True)
    if data.val_fraction is not None or data.fold_of is not None:
        return train, None
    val = opened(False)
    if val.classes != train.classes or (val.targets is None) != (train.targets is None):
        raise ValueError(f"data.plugin={data.plugin.path} has other classes or targets with train=False than with True")
    return train, val
