"""A source of images with several labels, two metrics for them, and a callback; named by multilabel.yaml."""

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class CsvOfLabels:
    """Images that FOLDER/train.csv and FOLDER/val.csv list: file, and labels with spaces between them."""

    def __init__(self, train: bool, folder: str) -> None:
        self.folder = Path(folder)
        rows = {name: self._rows(name) for name in ("train", "val")}
        self.classes = sorted({label for row in rows["train"] for label in row[1]})
        self.files = [file for file, _ in rows["train" if train else "val"]]
        self.targets = np.zeros((len(self.files), len(self.classes)), dtype=np.float32)
        for number, (_, labels) in enumerate(rows["train" if train else "val"]):
            self.targets[number, [self.classes.index(label) for label in labels]] = 1

    def _rows(self, name: str) -> list[tuple[str, list[str]]]:
        with open(self.folder / f"{name}.csv", newline="") as file:
            return [(row["file"], row["labels"].split()) for row in csv.DictReader(file)]

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> bytes:
        return (self.folder / self.files[index]).read_bytes()

    def describe(self, index: int) -> str:
        return str(self.folder / self.files[index])


def mean_average_precision(logits: Tensor, targets: Tensor) -> float:
    """Mean over the classes of the precision at each image that has the class, in the order of the logits."""
    order = logits.argsort(dim=0, descending=True, stable=True)
    has = targets.gather(0, order).double()
    precision = has.cumsum(0) / torch.arange(1, len(has) + 1)[:, None]
    count = has.sum(0)
    return float(((precision * has).sum(0) / count)[count > 0].mean())


def auroc(logits: Tensor, targets: Tensor) -> float:
    """Mean over the classes of how often an image that has the class comes before one that has not."""
    areas = []
    for scores, has in zip(logits.T, targets.T > 0.5, strict=True):
        if has.any() and not has.all():
            without = scores[~has].sort().values
            places = [torch.searchsorted(without, scores[has], right=right).double() for right in (False, True)]
            areas.append(sum(place.mean() for place in places) / 2 / len(without))
    return float(torch.stack(areas).mean())


class LargestNorm:
    """Tells after each evaluation how large the weights of the classifier have ever been."""

    def __init__(self, layer: str = "fc") -> None:
        self.layer, self.largest = layer, torch.zeros(())

    def on_step(self, step: int, model: nn.Module) -> None:
        # On the device: to ask for the number here would hold up each step.
        norm = model.get_submodule(self.layer).get_parameter("weight").detach().norm()
        self.largest = torch.maximum(self.largest.to(norm.device), norm)

    def on_evaluation(self, step: int, result: dict[str, float]) -> None:
        if os.environ.get("RANK", "0") == "0":
            print(f"step {step}: mAP {result['map']:.3f}, largest norm of {self.layer} {self.largest.item():.3f}")

    def state_dict(self) -> dict[str, Any]:
        return {"largest": self.largest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.largest = state["largest"]
