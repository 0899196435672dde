"""Weights in half precision, which take half the space and are computed with in float32."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save

from recipes.schema.recipe import Recipe
from resnet.rundir.files import write_atomic
from resnet.weights_file import find_weights, metadata_of, read_info

FILE = "weights.safetensors"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def write(weights: Path, recipe: Recipe, classes: list[str], to: str, file: Path) -> None:
    """Write a weights file, which says of itself what every one of ours does, with filters and matrices in `to`.

    Vectors stay as they are: BatchNorm's make less than a hundredth of a file, and statistics need their range.
    Raises ValueError where a weight is too large for float16.
    """
    info = read_info(weights)
    tensors = {}
    for name, tensor in find_weights(weights, recipe.model).tensors.items():
        narrow = tensor.is_floating_point() and tensor.dim() > 1
        tensors[name] = tensor.to(DTYPES[to]).contiguous() if narrow else tensor.contiguous()
        if narrow and tensor.isfinite().all() and not tensors[name].isfinite().all():
            raise ValueError(f"{weights}: {name} has numbers too large for {to}: take --to bf16")
    write_atomic(file, save(tensors, metadata_of(recipe, classes, info.step if info else 0)))
